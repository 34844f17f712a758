#include "network.h"

#include <algorithm>
#include <cstring>

namespace fastcond::cpu {
namespace {

constexpr int64_t rows_worth_the_weights = 128;  // of a product

bool is(const float* address, std::uintptr_t what) { return reinterpret_cast<std::uintptr_t>(address) == what; }

// Images [first, first + count) of an evaluation, and where in the memory of a segment's own these are.
struct Images {
    int64_t first, count, own_first;
};

// A step of an evaluation, for some of its images.
struct Run {
    const Evaluation& of;
    std::uintptr_t private_begin, private_end;
    Images images;
    int threads;

    // `place` of the first image of all becomes that of the first of these; an image takes `floats`.
    template <typename T>
    void move(T*& place, int64_t floats) const {
        if (place == nullptr) return;
        if (is(place, Network::input)) place = const_cast<T*>(of.x);
        if (is(place, Network::output)) place = of.y;
        const auto address = reinterpret_cast<std::uintptr_t>(place);
        place += (private_begin <= address && address < private_end ? images.own_first : images.first) * floats;
    }
    template <typename S>
    S prepared(S step) const {
        step.batch = images.count;
        step.threads = threads;
        return step;
    }

    void operator()(const NormConv& given) const {
        NormConv step = prepared(given);
        const int64_t y = step.height * step.width, x = step.upsampled ? y / 4 : y, C = step.channels;
        const int64_t first = step.second ? step.first_channels : C;
        move(step.x, x * first);
        move(step.second, x * (C - first));
        for (const float** affine : {&step.mean, &step.gain, &step.offset}) move(*affine, C);
        move(step.bias, step.bias_stride);
        move(step.residual, y * step.features);
        move(step.y, y * step.features);
        move(step.y_mean, step.features);
        move(step.y_m2, step.features);
        norm_conv(step);
    }
    void operator()(const SmallAttention& given) const {
        SmallAttention step = prepared(given);
        const int64_t map = step.tokens * step.channels;
        for (const float** affine : {&step.mean, &step.gain, &step.offset}) move(*affine, step.channels);
        move(step.x, map);
        move(step.out_bias, step.out_bias_stride);
        move(step.residual, map);
        move(step.y, map);
        small_attention(step);
    }
    void operator()(const PatchConv& given) const {
        PatchConv step = prepared(given);
        step.copies = 1;
        if (is(step.x, Network::input) && of.copies > 1) {  // all images
            step.copies = of.copies;
            step.batch = of.batch / of.copies;
        }
        const int64_t x = step.height * step.width, y = x / (step.stride * step.stride);
        move(step.x, x * step.first_channels);
        move(step.second, x * (step.channels - step.first_channels));
        for (const float** affine : {&step.mean, &step.gain, &step.offset}) move(*affine, step.channels);
        move(step.residual, y * step.features);
        move(step.y, y * step.features);
        patch_conv(step);
    }
    void operator()(const ChannelStatistics& given) const {
        ChannelStatistics step = prepared(given);
        move(step.x, step.positions * step.channels);
        move(step.mean, step.channels);
        move(step.m2, step.channels);
        channel_statistics(step);
    }
    void operator()(const ChannelNorm& given) const {
        ChannelNorm step = prepared(given);
        const int64_t C = step.channels, first = step.first_channels;
        move(step.first_mean, first);
        move(step.first_m2, first);
        move(step.second_mean, C - first);
        move(step.second_m2, C - first);
        for (float** affine : {&step.mean, &step.gain, &step.offset}) move(*affine, C);
        step.columns = given.at < 0 ? nullptr : of.columns;
        step.slots = of.slots + images.first;
        step.row = of.width;
        channel_norm(step);
    }
    void operator()(const RowBias& given) const {
        RowBias step = given;
        step.batch = images.count;
        move(step.y, step.features);
        step.columns = of.columns;
        step.slots = of.slots + images.first;
        step.row = of.width;
        row_bias(step);
    }
    void operator()(const Resample& given) const {
        Resample step = prepared(given);
        const int64_t to = step.up ? 2 : 1, from = step.up ? 1 : 2;
        const int64_t y = (step.height * to / from) * (step.width * to / from) * step.channels;
        const int64_t copies = is(step.x, Network::input) ? of.copies : 1;
        if (copies > 1) step.batch = of.batch / copies;  // all images
        move(step.x, step.height * step.width * step.channels);
        for (const float** affine : {&step.mean, &step.gain, &step.offset}) move(*affine, step.channels);
        move(step.y, y);
        for (int64_t copy = 0; copy < copies; ++copy, step.y += step.batch * y) resample(step);
    }
    void operator()(const LayerNorm& given) const {
        LayerNorm step = prepared(given);
        move(step.x, step.positions * step.channels);
        move(step.y, step.positions * step.channels);
        layer_norm(step);
    }
    void operator()(const GatedGelu& given) const {
        GatedGelu step = prepared(given);
        move(step.x, 2 * step.positions * step.channels);
        move(step.y, step.positions * step.channels);
        gated_gelu(step);
    }
};

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Images that a step wants together, for the sake of its weights.
struct Wanted {
    int64_t operator()(const NormConv& step) const {
        const int64_t tile = step.upsampled ? 8 : 4;
        return tiles_together(step.channels) / (parts_of(step.height, tile) * parts_of(step.width, tile));
    }
    int64_t operator()(const PatchConv& step) const {
        return rows_worth_the_weights * step.stride * step.stride / (step.height * step.width);
    }
    template <typename S>
    int64_t operator()(const S&) const { return 1; }
};

struct ReadsInput {
    bool operator()(const NormConv& step) const { return is(step.x, Network::input); }
    bool operator()(const PatchConv& step) const { return is(step.x, Network::input); }
    bool operator()(const Resample& step) const { return is(step.x, Network::input); }
    template <typename S>
    bool operator()(const S&) const { return false; }
};

// What was made for some of an evaluation's first images becomes their copies' too.
void copy(const HandedOn& made, const Images& images, const Evaluation& evaluation) {
    const float* from = made.of_images + images.first * made.floats;
    for (int64_t i = 1; i < evaluation.copies; ++i) {
        float* to = made.of_images + (i * (evaluation.batch / evaluation.copies) + images.first) * made.floats;
        std::memcpy(to, from, size_t(images.count * made.floats) * sizeof(float));
    }
}

}  // namespace

void Network::end_segment() {
    Segment segment{segments_.empty() ? 0 : segments_.back().end, steps_.size()};
    for (size_t i = segment.begin; i < segment.end; ++i) {
        segment.images = std::max(segment.images, std::visit(Wanted{}, steps_[i]));
        segment.reads_input = segment.reads_input || std::visit(ReadsInput{}, steps_[i]);
    }
    segments_.push_back(segment);
}

void Network::run(const Evaluation& evaluation) const {
    const int64_t threads = evaluation.threads;
    for (const Segment& segment : segments_) {
        const bool once = evaluation.copies > 1 && !segment.handed_on.empty();
        const int64_t batch = once ? evaluation.batch / evaluation.copies : evaluation.batch;
        const auto go = [&](const Images& images, int together) {
            const Run step{evaluation, private_begin_, private_end_, images, together};
            for (size_t i = segment.begin; i < segment.end; ++i) std::visit(step, steps_[i]);
            if (once)
                for (const HandedOn& made : segment.handed_on) copy(made, images, evaluation);
        };
        if (batch <= (threads - 1) * segment.images || (segment.reads_input && evaluation.copies > 1)) {
            go({0, batch, 0}, evaluation.threads);
            continue;
        }
        // A thread has the same images in every such segment: its cache has what it wrote of them.
#pragma omp parallel for num_threads(int(threads)) if (threads > 1) schedule(static)
        for (int64_t thread = 0; thread < threads; ++thread) {
            const int64_t begin = batch * thread / threads, count = batch * (thread + 1) / threads - begin;
            const int64_t groups = parts_of(count, segment.images);
            for (int64_t group = 0; group < groups; ++group) {
                const int64_t first = count * group / groups;
                go({begin + first, count * (group + 1) / groups - first, thread * segment.images}, 1);
            }
        }
    }
}

}  // namespace fastcond::cpu
