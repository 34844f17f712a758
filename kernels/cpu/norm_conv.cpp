#include "norm_conv.h"

#include "instruction_set.h"
#include "norm_conv_points.h"

namespace fastcond::cpu {

#define DECLARE(set)                  \
    namespace set {                   \
    void norm_conv(const NormConv&); \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void norm_conv(const NormConv& call) { FASTCOND_DISPATCH(norm_conv, call) }

void pack_conv_weight(const float* weight, float* packed, int64_t channels, int64_t features,
                      [[maybe_unused]] int threads) {
    using namespace winograd;
    const int64_t blocks = (features + 31) / 32;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * 32, left = features - first, width = left > 16 ? 32 : 16;
        float* of_block = packed + first * products * channels;
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t k = 0; k < width; ++k) {
                float* to = of_block + c * width + k;
                if (k >= left) {
                    for (int i = 0; i < products; ++i) to[i * channels * width] = 0.0f;
                    continue;
                }
                // G g G^T in double, so that a packed weight is off by one rounding.
                const float* g = weight + ((first + k) * channels + c) * 9;
                for (int row = 0; row < inputs; ++row) {
                    double part[3];
                    for (int j = 0; j < 3; ++j)
                        part[j] = G[row][0] * double(g[j]) + G[row][1] * double(g[3 + j]) + G[row][2] * double(g[6 + j]);
                    for (int column = 0; column < inputs; ++column)
                        to[(row * inputs + column) * channels * width] =
                            float(part[0] * G[column][0] + part[1] * G[column][1] + part[2] * G[column][2]);
                }
            }
    }
}

}  // namespace fastcond::cpu
