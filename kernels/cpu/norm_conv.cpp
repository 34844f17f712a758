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

namespace {

constexpr int64_t together = 16;  // features whose filters are transformed in step

// G g G^T of `count` filters, C * 9 floats apart, to 36 rows of 16, `place` floats apart; in double, so that a packed
// weight is off by one rounding. Features that are not there are zero.
void transform_filters(const float* weight, int64_t stride, int64_t count, float* to, int64_t place) {
    using namespace winograd;
    double g[3][3][together] = {}, half[inputs][3][together];
    for (int64_t k = 0; k < count; ++k)
        for (int i = 0; i < 9; ++i) g[i / 3][i % 3][k] = double(weight[k * stride + i]);
    for (int row = 0; row < inputs; ++row)
        for (int j = 0; j < 3; ++j)
            for (int64_t k = 0; k < together; ++k)
                half[row][j][k] = G[row][0] * g[0][j][k] + G[row][1] * g[1][j][k] + G[row][2] * g[2][j][k];
    for (int row = 0; row < inputs; ++row)
        for (int column = 0; column < inputs; ++column, to += place)
            for (int64_t k = 0; k < together; ++k)
                to[k] = float(half[row][0][k] * G[column][0] + half[row][1][k] * G[column][1] + half[row][2][k] * G[column][2]);
}

}  // namespace

void pack_conv_weight(const float* weight, float* packed, int64_t channels, int64_t features,
                      [[maybe_unused]] int threads) {
    using winograd::products;
    const int64_t parts = (features + together - 1) / together;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t feature = part * together, panel = feature / 32 * 32;
        const int64_t width = features - panel > together ? 32 : together;
        const int64_t count = features - feature < together ? features - feature : together;
        float* to = packed + panel * products * channels + (feature - panel);
        for (int64_t c = 0; c < channels; ++c)
            transform_filters(weight + (feature * channels + c) * 9, channels * 9, count, to + c * width, channels * width);
    }
}

}  // namespace fastcond::cpu
