// The decoder's hot loops on a CPU, in float32, where asked for with products of bfloat16: matrix products, experts,
// attention, norms, rotations.
//
// Why own code: at a few hundred hidden dimensions a step is thousands of products of some fifty rows. A library call for
// each costs more in starting, padding and copying than in computing. Here one call does a whole layer's experts or
// attention, or a whole decoding step, and what lies between two products never leaves the cache.
//
// Shapes: T tokens, D hidden, E experts, k experts per token, I expert width, L length, H query and G key heads.
// Everything is row-major unless it says otherwise. Built and called by native.py; it reads from the functions behind
// `extern "C"` how many arguments each takes.

#include "attention.h"
#include "decoding.h"
#include "dense.h"
#include "experts.h"
