#include "network.h"

#include <type_traits>

namespace fastcond::cpu {
namespace {

void resolve(const float*& from, const Evaluation& of) {
    if (reinterpret_cast<std::uintptr_t>(from) == Network::input) from = of.x;
}
void resolve(float*& to, const Evaluation& of) {
    if (reinterpret_cast<std::uintptr_t>(to) == Network::output) to = of.y;
}

struct Run {
    const Evaluation& of;

    template <typename S>
    S prepared(S step) const {
        step.batch = of.batch;
        if constexpr (!std::is_same_v<S, RowBias>) step.threads = of.threads;
        return step;
    }
    void operator()(const NormConv& given) const {
        NormConv step = prepared(given);
        resolve(step.x, of);
        resolve(step.y, of);
        norm_conv(step);
    }
    void operator()(const SmallAttention& given) const { small_attention(prepared(given)); }
    void operator()(const PatchConv& given) const {
        PatchConv step = prepared(given);
        step.copies = 1;
        if (reinterpret_cast<std::uintptr_t>(step.x) == Network::input) {
            step.copies = of.copies;
            step.batch = of.batch / of.copies;
        }
        resolve(step.x, of);
        resolve(step.y, of);
        patch_conv(step);
    }
    void operator()(const ChannelStatistics& given) const { channel_statistics(prepared(given)); }
    void operator()(const ChannelNorm& given) const {
        ChannelNorm step = prepared(given);
        step.columns = given.at < 0 ? nullptr : of.columns;
        step.slots = of.slots;
        step.row = of.width;
        channel_norm(step);
    }
    void operator()(const RowBias& given) const {
        RowBias step = prepared(given);
        step.columns = of.columns;
        step.slots = of.slots;
        step.row = of.width;
        row_bias(step);
    }
    void operator()(const Resample& given) const {
        Resample step = prepared(given);
        const bool reads_input = reinterpret_cast<std::uintptr_t>(step.x) == Network::input;
        const int64_t copies = reads_input ? of.copies : 1, halved = step.up ? 1 : 2, doubled = step.up ? 2 : 1;
        resolve(step.x, of);
        step.batch = of.batch / copies;
        const int64_t floats = step.batch * (step.height * doubled / halved) * (step.width * doubled / halved) * step.channels;
        for (int64_t copy = 0; copy < copies; ++copy, step.y += floats) resample(step);
    }
    void operator()(const LayerNorm& given) const { layer_norm(prepared(given)); }
    void operator()(const GatedGelu& given) const { gated_gelu(prepared(given)); }
};

}  // namespace

void Network::run(const Evaluation& evaluation) const {
    for (const Step& step : steps_) std::visit(Run{evaluation}, step);
}

}  // namespace fastcond::cpu
