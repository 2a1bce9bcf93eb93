// The thread pool behind the C interface, and what this library was built for.
#include "abi.h"
#include "lanes.h"
#include "pool.h"

SHOAL_API void shoal_set_threads(int64_t count) { shoal::set_threads(static_cast<int>(count)); }
SHOAL_API int64_t shoal_threads() { return shoal::threads(); }
SHOAL_API int64_t shoal_is_fused() { return kFused; }
