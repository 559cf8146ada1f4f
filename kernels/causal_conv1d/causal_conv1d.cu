// Causal depthwise convolution, channel-last, forward and backward; the algorithm is in README.md.
//
// A thread owns VECTOR neighbouring channels over a tile of positions of one row and walks it in
// the order of the walk (`reverse` flips the row), the last WIDTH - 1 inputs in registers. Nothing
// is shared between threads. A tile is walked sequence by sequence: without packing a row is one.
//
// Macros: BFLOAT16, FLOAT16 (neither: float32), VECTOR (1, 2, 4, 8; at most 16 bytes), WIDTH,
// SILU, PACKED, UNROLL (positions whose loads are in flight), THREADS (most threads of a block).
// No header, and every integer parameter is 64 bits: as kernels/nvrtc.py launches.

typedef long long i64;

#define INLINE __device__ __forceinline__
#define PAST (WIDTH - 1)

#if BFLOAT16 || FLOAT16
typedef unsigned short element;
#else
typedef float element;
#endif

constexpr int BYTES = VECTOR * sizeof(element);
constexpr int WORDS = (BYTES + 3) / 4;

// As loaded: VECTOR elements in words of 32 bits.
struct Raw {
    unsigned word[WORDS];
};

INLINE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float sigmoid(float x) { return reciprocal(1.f + exp2_approx(-1.4426950408889634f * x)); }

INLINE float low_half(unsigned word) {
#if FLOAT16
    float y;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(y) : "r"(word));
    return y;
#else
    return __uint_as_float(word << 16);
#endif
}

INLINE float high_half(unsigned word) {
#if FLOAT16
    float y;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(y) : "r"(word));
    return y;
#else
    return __uint_as_float(word & 0xffff0000u);
#endif
}

INLINE unsigned both_halves(float low, float high) {
    unsigned word;
#if FLOAT16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#endif
    return word;
}

INLINE Raw load(const element *from) {
    Raw raw;
    if constexpr (BYTES == 16) {
        const uint4 v = *reinterpret_cast<const uint4 *>(from);
        raw.word[0] = v.x, raw.word[1] = v.y, raw.word[2] = v.z, raw.word[3] = v.w;
    } else if constexpr (BYTES == 8) {
        const uint2 v = *reinterpret_cast<const uint2 *>(from);
        raw.word[0] = v.x, raw.word[1] = v.y;
    } else if constexpr (BYTES == 4) {
        raw.word[0] = *reinterpret_cast<const unsigned *>(from);
    } else {
        raw.word[0] = *reinterpret_cast<const unsigned short *>(from);
    }
    return raw;
}

INLINE void store(element *to, const Raw &raw) {
    if constexpr (BYTES == 16) {
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(raw.word[0], raw.word[1], raw.word[2], raw.word[3]);
    } else if constexpr (BYTES == 8) {
        *reinterpret_cast<uint2 *>(to) = make_uint2(raw.word[0], raw.word[1]);
    } else if constexpr (BYTES == 4) {
        *reinterpret_cast<unsigned *>(to) = raw.word[0];
    } else {
        *reinterpret_cast<unsigned short *>(to) = (unsigned short)raw.word[0];
    }
}

INLINE void unpack(const Raw &raw, float (&to)[VECTOR]) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        if constexpr (sizeof(element) == 4) {
            to[v] = __uint_as_float(raw.word[v]);
        } else {
            to[v] = v % 2 ? high_half(raw.word[v / 2]) : low_half(raw.word[v / 2]);
        }
    }
}

INLINE Raw pack(const float (&from)[VECTOR]) {
    Raw raw;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
        if constexpr (sizeof(element) == 4) {
            raw.word[w] = __float_as_uint(from[w]);
        } else {
            const float high = 2 * w + 1 < VECTOR ? from[(2 * w + 1) % VECTOR] : 0.f;
            raw.word[w] = both_halves(from[2 * w], high);
        }
    }
    return raw;
}

INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// a / b for a >= 0, b > 0; in 32 bits where they fit, which is most of the time and ten times faster
INLINE i64 divide(i64 a, i64 b) {
    return (a | b) >> 32 ? a / b : (i64)((unsigned)a / (unsigned)b);
}

// What a thread works on: VECTOR channels from `channel` on, positions [first, last) of a row.
struct Part {
    i64 row, tile, channel, first, last;
};

INLINE Part my_part(i64 length, i64 channels, i64 tile) {
    const i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const i64 columns = channels / VECTOR, tiles = divide(length + tile - 1, tile);
    Part part;
    part.tile = divide(thread, columns);  // over all rows
    part.channel = (thread - part.tile * columns) * VECTOR;
    part.row = divide(part.tile, tiles);
    part.first = (part.tile - part.row * tiles) * tile;
    part.last = smaller(part.first + tile, length);
    return part;
}

// Positions [begin, end) of a row in the order of the walk, and the row of its states.
struct Sequence {
    i64 begin, end, state;
};

#if PACKED
INLINE Sequence sequence_at(const int *cu, i64 index, i64 sequences, i64 length, bool reverse) {
    if (reverse) {
        const i64 mirrored = sequences - 1 - index;
        return {length - cu[mirrored + 1], length - cu[mirrored], mirrored};
    }
    return {cu[index], cu[index + 1], index};
}
#endif

// The sequences of a row, one after the other.
struct Walk {
    const int *cu;
    i64 sequences, length;
    bool reverse;
    i64 index;
    Sequence now;

    // Stand on the sequence that holds `position`.
    INLINE void begin_at(i64 row, i64 position) {
#if PACKED
        i64 low = 0, high = sequences - 1;
        while (low < high) {
            const i64 middle = (low + high + 1) >> 1;
            if (sequence_at(cu, middle, sequences, length, reverse).begin <= position) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        index = low;
        now = sequence_at(cu, index, sequences, length, reverse);
#else
        index = 0;
        now = {0, length, row};
#endif
    }

    INLINE void advance() {
#if PACKED
        if (++index < sequences) now = sequence_at(cu, index, sequences, length, reverse);
#endif
    }
};

// VECTOR channels of a row of a (B, L, D) tensor, by position of the walk.
template <typename T>
struct Column {
    T *origin;
    i64 step;

    INLINE Column(T *base, i64 row, i64 channel, const i64 (&stride)[3], i64 length, bool reverse)
        : origin(base + row * stride[0] + channel * stride[2] +
                 (reverse ? (length - 1) * stride[1] : 0)),
          step(reverse ? -stride[1] : stride[1]) {}

    INLINE T *at(i64 position) const { return origin + position * step; }
};

// Row `slot` of a state (rows, WIDTH - 1, D), a null pointer where there is none.
template <typename T>
INLINE T *state_row(T *states, i64 state, i64 slot, i64 channels, i64 channel) {
    return states + (state * PAST + slot) * channels + channel;
}

// The WIDTH - 1 inputs before `position`: of the sequence, before its begin of the initial state.
INLINE void read_past(float (*past)[VECTOR], const Column<const element> &x, i64 position,
                      const Sequence &sequence, const float *initial, i64 channels, i64 channel) {
#pragma unroll
    for (int j = 0; j < PAST; ++j) {
        const i64 at = position - PAST + j;
        if (at >= sequence.begin) {
            unpack(load(x.at(at)), past[j]);
            continue;
        }
        const float *from =
            state_row(initial, sequence.state, at - sequence.begin + PAST, channels, channel);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) past[j][v] = initial ? from[v] : 0.f;
    }
}

// Weights and bias of VECTOR channels.
struct Filter {
    float tap[WIDTH][VECTOR], bias[VECTOR];

    INLINE Filter(const float *weights, const float *biases, i64 channel) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            bias[v] = biases ? biases[channel + v] : 0.f;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) tap[k][v] = weights[(channel + v) * WIDTH + k];
        }
    }

    // Before SiLU, of the WIDTH inputs from `inputs` on. Always the same order: the bits of a result
    // do not depend on tiles or packing.
    INLINE float apply(const float (*inputs)[VECTOR], int v) const {
        float sum = bias[v];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) sum = fmaf(tap[k][v], inputs[k][v], sum);
        return sum;
    }
};

// y (B, L, D), channels side by side, and final_state (rows, WIDTH - 1, D), contiguous, of the type of
// x; initial is float32 and may be null, so may bias; cu only with PACKED. One thread per tile and
// VECTOR channels.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
causal_conv1d_forward(const element *x, const float *weight, const float *bias,
                      const float *initial, const int *cu, element *y, element *final_state,
                      i64 batch, i64 length, i64 channels, i64 sequences, i64 x_row, i64 x_position,
                      i64 x_channel, i64 y_row, i64 y_position, i64 reverse, i64 tile) {
    const Part part = my_part(length, channels, tile);
    if (part.row >= batch) return;
    const i64 x_stride[3] = {x_row, x_position, x_channel};
    const i64 y_stride[3] = {y_row, y_position, 1};
    const Column<const element> in(x, part.row, part.channel, x_stride, length, reverse);
    const Column<element> out(y, part.row, part.channel, y_stride, length, reverse);
    const Filter filter(weight, bias, part.channel);
    Walk walk{cu, sequences, length, reverse != 0};
    walk.begin_at(part.row, part.first);
    for (i64 start = part.first; start < part.last; walk.advance()) {
        const int own = (int)(smaller(part.last, walk.now.end) - start);
        const element *from = in.at(start);
        element *to = out.at(start);
        float inputs[PAST + UNROLL][VECTOR];
        read_past(inputs, in, start, walk.now, initial, channels, part.channel);
        Raw ahead[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) ahead[i] = i < own ? load(from + i * in.step) : Raw{};
        for (int left = own; left > 0; left -= UNROLL) {
            from += UNROLL * in.step;
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) {
                unpack(ahead[i], inputs[PAST + i]);
                // UNROLL loads are in flight at any moment, each UNROLL positions before its use.
                if (UNROLL + i < left) ahead[i] = load(from + i * in.step);
                float results[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    const float sum = filter.apply(inputs + i, v);
                    results[v] = SILU ? sum * sigmoid(sum) : sum;
                }
                if (i < left) store(to + i * out.step, pack(results));
            }
            to += UNROLL * out.step;
#pragma unroll
            for (int j = 0; j < PAST; ++j) {
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) inputs[j][v] = inputs[UNROLL + j][v];
            }
        }
        start += own;
        if (start != walk.now.end) continue;
        read_past(inputs, in, start, walk.now, initial, channels, part.channel);
#pragma unroll
        for (int j = 0; j < PAST; ++j)
            store(state_row(final_state, walk.now.state, j, channels, part.channel),
                  pack(inputs[j]));
    }
}

// Gradients of the weights and of the bias that one thread sees.
struct Sums {
    float tap[WIDTH][VECTOR], bias[VECTOR];
};

// What the walk of the backward holds: the last PAST positions, and STEPS new ones behind them.
template <int STEPS>
struct Window {
    float inputs[PAST + STEPS][VECTOR];
    float before_silu[PAST + STEPS][VECTOR];  // gradients there

    // Take in new position i, and add it to the sums if it counts; one that is no position of the
    // sequence leaves nothing.
    INLINE void take(const Filter &filter, Sums &sums, int i, const Raw &x, const Raw &dy,
                     bool exists, bool counts) {
        unpack(x, inputs[PAST + i]);
        unpack(dy, before_silu[PAST + i]);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            float g = before_silu[PAST + i][v];
            if (SILU) {
                const float sum = filter.apply(inputs + i, v), s = sigmoid(sum);
                g *= s * fmaf(sum, 1.f - s, 1.f);
            }
            before_silu[PAST + i][v] = exists ? g : 0.f;
            if (!counts) continue;
            sums.bias[v] += g;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                sums.tap[k][v] = fmaf(g, inputs[i + k][v], sums.tap[k][v]);
        }
    }

    // Gradient of the input PAST positions before new position i: now all that it met is known.
    INLINE void of_input(const Filter &filter, int i, float (&result)[VECTOR]) const {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            result[v] = 0.f;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                result[v] = fmaf(filter.tap[k][v], before_silu[PAST + i - k][v], result[v]);
        }
    }
};

// Carry the last PAST positions over.
template <int STEPS, int NEXT>
INLINE void carry(const Window<STEPS> &from, Window<NEXT> &to) {
#pragma unroll
    for (int j = 0; j < PAST; ++j) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            to.inputs[j][v] = from.inputs[STEPS + j][v];
            to.before_silu[j][v] = from.before_silu[STEPS + j][v];
        }
    }
}

// The groups of UNROLL positions from start + t on that lie within `own`; how many positions they are.
// An input of the sequence's last PAST is not among those completed here.
INLINE int backward_groups(Window<1> &window, const Filter &filter, Sums &sums,
                           const Column<const element> &in, const Column<const element> &dout,
                           const Column<element> &out, i64 start, int t, int own) {
    const int begin = t;
    const element *from = in.at(start + t), *dfrom = dout.at(start + t);
    element *to = out.at(start + t - PAST);
    Window<UNROLL> group;
#pragma unroll
    for (int j = 0; j < PAST; ++j) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            group.inputs[j][v] = window.inputs[j][v];
            group.before_silu[j][v] = window.before_silu[j][v];
        }
    }
    Raw ahead[UNROLL], dahead[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        ahead[i] = load(from + i * in.step);
        dahead[i] = load(dfrom + i * dout.step);
    }
    for (; t + UNROLL <= own; t += UNROLL) {
        const bool more = t + 2 * UNROLL <= own;
        from += UNROLL * in.step;
        dfrom += UNROLL * dout.step;
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            group.take(filter, sums, i, ahead[i], dahead[i], true, true);
            if (more) {
                ahead[i] = load(from + i * in.step);
                dahead[i] = load(dfrom + i * dout.step);
            }
            float result[VECTOR];
            group.of_input(filter, i, result);
            // The inputs before `start` are the tile's before this one.
            if (t + i >= PAST) store(to + i * out.step, pack(result));
        }
        to += UNROLL * out.step;
        carry(group, group);
    }
#pragma unroll
    for (int j = 0; j < PAST; ++j) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            window.inputs[j][v] = group.inputs[j][v];
            window.before_silu[j][v] = group.before_silu[j][v];
        }
    }
    return t - begin;
}

// dx (B, L, D), channels side by side, of the type of x, no memory of x or dy;
// initial_gradient (rows, WIDTH - 1, D) float32 or null;
// partial (tiles of all rows, WIDTH + 1, D) float32: what each tile adds to dweight and dbias.
// final_gradient (rows, WIDTH - 1, D) float32 reached the final state. Threads as in the forward.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
causal_conv1d_backward(const element *x, const element *dy, const float *weight, const float *bias,
                       const float *initial, const int *cu, const float *final_gradient,
                       element *dx, float *initial_gradient, float *partial, i64 batch, i64 length,
                       i64 channels, i64 sequences, i64 x_row, i64 x_position, i64 x_channel,
                       i64 dy_row, i64 dy_position, i64 dy_channel, i64 dx_row, i64 dx_position,
                       i64 reverse, i64 tile) {
    const Part part = my_part(length, channels, tile);
    if (part.row >= batch) return;
    const i64 x_stride[3] = {x_row, x_position, x_channel};
    const i64 dy_stride[3] = {dy_row, dy_position, dy_channel};
    const i64 dx_stride[3] = {dx_row, dx_position, 1};
    const Column<const element> in(x, part.row, part.channel, x_stride, length, reverse);
    const Column<const element> dout(dy, part.row, part.channel, dy_stride, length, reverse);
    const Column<element> out(dx, part.row, part.channel, dx_stride, length, reverse);
    const Filter filter(weight, bias, part.channel);
    Sums sums = {};
    Walk walk{cu, sequences, length, reverse != 0};
    walk.begin_at(part.row, part.first);
    for (i64 start = part.first; start < part.last; walk.advance()) {
        // An input meets outputs up to PAST positions later: the walk goes on into the next tile,
        // but not into the next sequence, and what it finds there belongs to that tile's sums.
        // From here on positions count from `start`.
        const int own = (int)(smaller(part.last, walk.now.end) - start);
        const int seen = (int)(smaller(start + own + PAST, walk.now.end) - start);
        const bool fresh = start == walk.now.begin;
        const int slow = fresh && initial_gradient ? PAST : 0;  // positions before any group
        Window<1> window = {};
        read_past(window.inputs, in, start, walk.now, initial, channels, part.channel);
        int t = 0;
        while (t < own + PAST) {
            if (t >= slow && t + UNROLL <= own) {
                t += backward_groups(window, filter, sums, in, dout, out, start, t, own);
                continue;
            }
            const bool exists = t < seen;
            Raw input = {}, gradient = {};
            if (exists) input = load(in.at(start + t)), gradient = load(dout.at(start + t));
            window.take(filter, sums, 0, input, gradient, exists, t < own);
            float result[VECTOR];
            window.of_input(filter, 0, result);
            carry(window, window);
            const int at = t++ - PAST;
            if (at >= own || (at < 0 && !fresh)) continue;
            const i64 slot = start + at - (walk.now.end - PAST);
            if (slot >= 0) {
                const float *more =
                    state_row(final_gradient, walk.now.state, slot, channels, part.channel);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) result[v] += more[v];
            }
            if (at >= 0) {
                store(out.at(start + at), pack(result));
            } else if (initial_gradient) {
                float *to = state_row(initial_gradient, walk.now.state, at + PAST, channels,
                                      part.channel);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) to[v] = result[v];
            }
        }
        start += own;
    }
    float *to = partial + part.tile * (WIDTH + 1) * channels + part.channel;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) to[k * channels + v] = sums.tap[k][v];
        to[WIDTH * channels + v] = sums.bias[v];
    }
}
