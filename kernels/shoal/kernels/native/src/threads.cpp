// The thread pool behind the C interface.
#include "abi.h"
#include "pool.h"

SHOAL_API void shoal_set_threads(int64_t count) { shoal::set_threads(static_cast<int>(count)); }
SHOAL_API int64_t shoal_threads() { return shoal::threads(); }
