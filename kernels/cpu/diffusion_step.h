// One row of a sampler's table on the CPU; fastcond/ops/diffusion_step/reference.py defines what is computed.
#pragma once

#include "fastcond/step.h"

namespace fastcond::cpu {

// At most `threads` threads run; the result does not depend on it. The buffers have passed `buffers_are_separate`.
// Throws std::out_of_range for a row that is not there, std::invalid_argument for a seed that does not fit 32 bits.
void diffusion_step(const DiffusionStep& call, int threads);

// Whether every input either shares no memory with an output, or is it element for element: then each element is read
// before it is written.
bool buffers_are_separate(const DiffusionStep& call);

}  // namespace fastcond::cpu
