// One row of a sampler's table on a GPU; fastcond/ops/diffusion_step/reference.py defines what is computed.
#pragma once

#include "fastcond/step.h"

// Launches on `stream`, a cudaStream_t, and returns at once: null, or what the launch failed of. All that `call` points to
// is on the GPU, the row too, so a captured graph can be replayed.
extern "C" const char* fastcond_diffusion_step_cuda(const fastcond::DiffusionStep* call, void* stream);
