// A network's evaluation as a list of steps, run by one call: between two steps there is no Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "network_steps.h"
#include "norm_conv.h"
#include "small_attention.h"

namespace fastcond::cpu {

// What differs from one evaluation to the next.
struct Evaluation {
    const float* x;          // the network's input
    float* y;                // its output
    const float* columns;    // a row of the conditioning table: [labels, width]
    const int64_t* slots;    // [B], the label of each image
    int64_t width;
    int64_t batch;
    int64_t copies;  // so many parts of the batch are the same images one after the other; what can reads one part and writes all
    int threads;
};

// What a segment makes for later ones and copies of the same images share: `floats` an image.
struct HandedOn {
    float* of_images;
    int64_t floats;
};

// Steps that some images go through before the next ones do, so that they are found in a core's cache.
struct Segment {
    size_t begin, end;   // its steps
    int64_t images = 1;  // so many at once are worth the reading of the weights
    bool reads_input = false;
    std::vector<HandedOn> handed_on{};  // where copies of the same images have the same
};

class Network {
public:
    // Addresses that stand for an evaluation's own input and output; no memory is there.
    static constexpr std::uintptr_t input = 1, output = 2;

    using Step = std::variant<NormConv, SmallAttention, PatchConv, ChannelStatistics, ChannelNorm, RowBias, Resample,
                              LayerNorm, GatedGelu>;

    // What an evaluation says is filled in when it runs: batch, threads, the conditioning, its own input and output. A ChannelNorm
    // without conditioning has a negative `at`. A PatchConv that reads the input has no residual.
    void add(const Step& step) { steps_.push_back(step); }

    // The steps added since the last call are a segment.
    void end_segment();

    // The last segment, which neither reads the input nor depends on labels, makes this for later ones. It runs once for all copies
    // of the same images, so all that it makes for later ones is to be named.
    void hand_on(const HandedOn& handed_on) { segments_.back().handed_on.push_back(handed_on); }

    // The most images that a thread takes through the segment `i` at once.
    int64_t images_together(size_t i) const { return segments_.at(i).images; }

    // What lies between these addresses is only needed within a segment. It has places for images_together a thread; fewer, where
    // a batch is so small that the threads work together: for the batch and one image less than that.
    void set_private(std::uintptr_t begin, std::uintptr_t end) { private_begin_ = begin, private_end_ = end; }

    void run(const Evaluation& evaluation) const;

private:
    std::vector<Step> steps_;
    std::vector<Segment> segments_;
    std::uintptr_t private_begin_ = 0, private_end_ = 0;
};

}  // namespace fastcond::cpu
