// The plain C interface. Every operation returns null, or says in words what was wrong with its arguments before it
// has written anything. Pointers are to contiguous row-major arrays; sizes are in elements.
#pragma once

#include <cstdint>

#define SHOAL_API extern "C" __attribute__((visibility("default")))
