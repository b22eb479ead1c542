package lifecycle

import "os"

// many says that this is `make bench-lifecycle`, and no test.
func many() bool { return os.Getenv("TRACEHOOK_BENCH_PODS") != "" }
