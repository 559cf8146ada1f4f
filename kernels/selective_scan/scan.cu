// Selective scan, forward and backward, for NVIDIA GPUs; compiled at run time, so no header.
// README.md beside this file, section cuda, says how the work is laid out and why.
//
// A thread holds 4 channels x 4 states in registers and walks time. SL threads share 4 channels,
// CL threads share 4 states; together they are a warp, which owns WCH channels with all N states.
// What depends on the channel alone (softplus, gates, loads, stores) is done between, TB steps at a
// time, VEC neighbouring channels per thread, and passes through shared memory.
//
// L is cut in chunks that run side by side: `chunk_ends` finds what each chunk hands on, `chunk_fold`
// chains them, and `forward` or `backward` walks each chunk from the right state.
//
// Macros, all set by cuda.py: the name of the one kernel to compile; DTYPE (0 float, 1 bf16, 2 fp16);
// N states; SL; VEC; NTH threads of a block, BLOCKS of them per multiprocessor; CK steps between
// saved states; TILES of which B and C are brought in at once; GATHER
// tiles whose dB and dC are summed over the warps at once; SOFTPLUS, HAS_Z, PACKED,
// ADJOINT, EXACT (never stop early), OUTPUT (the backward writes y as well),
// OVER_Z (it writes dz over z, by the strides of z).

typedef long long i64;
typedef unsigned short u16;

#define TB 8                         // steps of a tile
#define NPAD (4 * SL)                // states with padding: A = B = C = 0 there
#define CL (32 / SL)                 // threads of a warp side by side along the channels
#define WCH (4 * CL)                 // channels of a warp
#define NWARP (NTH / 32)
#define ROUNDS (TB * WCH / (32 * VEC))
#define ROW (2 * NPAD)               // a step of B and C
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define FORGOTTEN (-40.f)            // log2 of the weight below which a state is not carried on
// Whether `chunk_ends` may add a tile by tensor cores.
#define SERIES (SL == 4 && SOFTPLUS && !EXACT)
#define EACH4(k) _Pragma("unroll") for (int k = 0; k < 4; k++)

#if DTYPE == 0
typedef float T;
__device__ __forceinline__ float widen(T v) { return v; }
__device__ __forceinline__ T narrow(float v) { return v; }
#elif DTYPE == 1
typedef u16 T;
__device__ __forceinline__ float widen(T v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ float lower(unsigned v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float upper(unsigned v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ T narrow(float v) {
  u16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
#else
typedef u16 T;
__device__ __forceinline__ float widen(T v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}
__device__ __forceinline__ float lower(unsigned v) { return widen((u16)v); }
__device__ __forceinline__ float upper(unsigned v) { return widen((u16)(v >> 16)); }
__device__ __forceinline__ T narrow(float v) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
#endif

// The big kernels take the same list; cuda.py fills it by name. No __restrict__ where a result may lie over what
// it comes from (y and ddt over dt, dx over dy, dz over z): a lane writes just what it has read itself.
#define ARGUMENTS                                                                                 \
  const T *__restrict__ x, const T *dt, const T *z, const T *__restrict__ B,          \
      const T *__restrict__ C, const float *__restrict__ A, const float *__restrict__ skip,       \
      const float *__restrict__ bias, const float *__restrict__ initial,                          \
      const unsigned char *__restrict__ resets, const int *__restrict__ before,                   \
      const float *__restrict__ starts, T *y, float *__restrict__ last,              \
      float4 *__restrict__ marks, float *__restrict__ ends, float *__restrict__ sums,             \
      const T *dy, const float *__restrict__ dlast, T *dx, T *ddt, T *dz, \
      float *__restrict__ dmaps, float *__restrict__ by_chunk, float *__restrict__ dinitial,      \
      float *__restrict__ handed, float4 *__restrict__ scratch, i64 length, i64 channels,         \
      i64 per_group, i64 groups, i64 columns, i64 batches, i64 chunk, i64 chunks, i64 xb, i64 xt, \
      i64 dtb, i64 dtt, i64 zb, i64 zt, i64 Bb, i64 Bt, i64 Bg, i64 Bn, i64 Cb, i64 Ct, i64 Cg,   \
      i64 Cn, i64 yb, i64 yt, i64 dyb, i64 dyt, i64 dzb, i64 dzt, i64 marks_b

// ---------------------------------------------------------------- arithmetic

__device__ __forceinline__ float ex2(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float rcp(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// log(1 + e) for 0 <= e <= 1, relative error 1.3e-7: e + e^2 p(e). lg2.approx has an absolute error of
// 1e-7, which is 1e-3 of a step of 1e-4.
__device__ __forceinline__ float log1p_unit(float e) {
  float p = 5.3647387e-3f;
  p = fmaf(p, e, -3.0065451e-2f);
  p = fmaf(p, e, 7.9203986e-2f);
  p = fmaf(p, e, -1.3753755e-1f);
  p = fmaf(p, e, 1.9153634e-1f);
  p = fmaf(p, e, -2.4857157e-1f);
  p = fmaf(p, e, 3.3321321e-1f);
  p = fmaf(p, e, -4.9999648e-1f);
  return fmaf(p * e, e, e);
}
__device__ __forceinline__ float step_size(float raw) {
#if SOFTPLUS
  return fmaxf(raw, 0.f) + log1p_unit(ex2(-fabsf(raw) * LOG2E));
#else
  return raw;
#endif
}
// Derivative of the step size, from the step: softplus' = 1 - exp(-softplus).
__device__ __forceinline__ float step_slope(float d) {
#if SOFTPLUS
  float p = 8.3333333e-3f;
  p = fmaf(p, d, -4.1666667e-2f);
  p = fmaf(p, d, 1.6666667e-1f);
  p = fmaf(p, d, -0.5f);
  p = fmaf(p, d, 1.f) * d;
  return d < 0.1f ? p : 1.f - ex2(-d * LOG2E);
#else
  return 1.f;
#endif
}
__device__ __forceinline__ float sigmoid(float v) { return rcp(1.f + ex2(-v * LOG2E)); }

// The bits of v that tf32 keeps; what is left is a float exactly.
__device__ __forceinline__ float leading(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }
// sum (16, 8) += left (16, 8) right (8, 8) on tensor cores, in tf32.
__device__ __forceinline__ void multiply(float *sum, const float *left, float right0, float right1) {
  const unsigned *l = (const unsigned *)left;
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(l[0]), "r"(l[1]), "r"(l[2]), "r"(l[3]), "r"(__float_as_uint(right0)), "r"(__float_as_uint(right1)));
}
// Sums of v[0..3] over the COUNT lanes that differ in the bits FIRST, 2 FIRST, ... Lanes trade halves,
// so that a lane ends with 4 / min(4, COUNT) of the sums, from v[0] on; owned() says which.
template <int FIRST, int COUNT>
__device__ __forceinline__ void sum4(float *v) {
  const int lane = threadIdx.x & 31;
  if (COUNT >= 2) {
    const bool upper = lane & FIRST;
    const float send0 = upper ? v[0] : v[2], send1 = upper ? v[1] : v[3];
    v[0] = (upper ? v[2] : v[0]) + __shfl_xor_sync(~0u, send0, FIRST);
    v[1] = (upper ? v[3] : v[1]) + __shfl_xor_sync(~0u, send1, FIRST);
  }
  if (COUNT >= 4) {
    const bool upper = lane & (2 * FIRST);
    const float send = upper ? v[0] : v[1];
    v[0] = (upper ? v[1] : v[0]) + __shfl_xor_sync(~0u, send, (2 * FIRST) & 31);
  }
#pragma unroll
  for (int bit = 4 * FIRST; bit < COUNT * FIRST; bit *= 2) v[0] += __shfl_xor_sync(~0u, v[0], bit);
}
template <int FIRST, int COUNT>
__device__ __forceinline__ int owned() {
  const int lane = threadIdx.x & 31;
  return (COUNT >= 2 && lane & FIRST ? 2 : 0) + (COUNT >= 4 && lane & (2 * FIRST) ? 1 : 0);
}
#define OWN_CHANNELS (SL >= 4 ? 1 : 4 / SL)  // sums over states that a lane ends with
#define OWN_STATES (CL >= 4 ? 1 : 4 / CL)    // sums over channels that a lane ends with

// ---------------------------------------------------------------- who does what

struct Place {
  int warp, lane, sq, cl;  // sq: which lane along the states, cl: which along the channels
  int valid;               // channels of the warp that exist
  i64 group, channel;      // first channel of the warp
};
// `column`: which of the blocks across the channels, `columns` of them to a group.
__device__ __forceinline__ Place place(i64 column, i64 columns, i64 per_group) {
  Place p;
  p.lane = threadIdx.x & 31, p.warp = threadIdx.x >> 5;
  p.sq = p.lane % SL, p.cl = p.lane / SL;
  p.group = column / columns;
  const i64 inside = (column % columns * NWARP + p.warp) * WCH;
  p.valid = (int)max(0ll, min((i64)WCH, per_group - inside));
  p.channel = p.group * per_group + inside;
  return p;
}
// A thread's states are j SL + sq: of one j, all lanes hold neighbouring decays. B and C are permuted
// to match when they are put into shared memory.
__device__ __forceinline__ int state(const Place &me, int j) { return j * SL + me.sq; }
__device__ __forceinline__ int position(int n) { return n % SL * 4 + n / SL; }

typedef float States[4][4];  // channel, state

// From or to a (D, N) array; zeros where there is none.
__device__ __forceinline__ void load_states(States h, const float *from, const Place &me) {
  EACH4(c) EACH4(j) {
    const bool there = from && 4 * me.cl + c < me.valid && state(me, j) < N;
    h[c][j] = there ? from[(me.channel + 4 * me.cl + c) * N + state(me, j)] : 0.f;
  }
}
__device__ __forceinline__ void store_states(float *to, const States h, const Place &me) {
  EACH4(c) EACH4(j) {
    if (4 * me.cl + c < me.valid && state(me, j) < N)
      to[(me.channel + 4 * me.cl + c) * N + state(me, j)] = h[c][j];
  }
}
// Decay rates in units of log 2.
__device__ __forceinline__ void load_rates(States a, const float *A, const Place &me) {
  load_states(a, A, me);
  EACH4(c) EACH4(j) a[c][j] *= LOG2E;
}

// Marks: (B, marks, warps of all groups, 4, 32) float4, just as the threads hold them.
__device__ __forceinline__ float4 *mark(float4 *marks, i64 batch, i64 index, i64 per_group, i64 groups,
                                        const Place &me, i64 marks_b) {
  const i64 warps = (per_group + WCH - 1) / WCH;
  const i64 mine = me.group * warps + (me.channel - me.group * per_group) / WCH;
  return marks + batch * marks_b + (index * warps * groups + mine) * 128 + me.lane;
}
template <typename Address>
__device__ __forceinline__ void load_mark(States h, const Address *from, i64 apart) {
  EACH4(c) {
    const float4 v = from[c * apart];
    h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
  }
}
__device__ __forceinline__ void store_mark(float4 *to, const States h, i64 apart) {
  EACH4(c) to[c * apart] = make_float4(h[c][0], h[c][1], h[c][2], h[c][3]);
}
// The scratch of the backward, past the first cache, which holds what registers do not: the states of a span
// would drive that out.
__device__ __forceinline__ void load_scratch(States h, const float4 *from) {
  EACH4(c)
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(h[c][0]), "=f"(h[c][1]), "=f"(h[c][2]), "=f"(h[c][3]) : "l"(from + 32 * c));
}
__device__ __forceinline__ void store_scratch(float4 *to, const States h) {
  EACH4(c)
    asm volatile("st.global.cg.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + 32 * c), "f"(h[c][0]), "f"(h[c][1]),
                 "f"(h[c][2]), "f"(h[c][3]));
}
__device__ __forceinline__ void load4(float *v, const float *from) {
  const float4 all = *(const float4 *)from;
  v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
}

// A tile of the warp: TB steps of WCH channels, VEC neighbours at a time, as they lie in memory.
#define BYTES (VEC * sizeof(T))
#if VEC * (DTYPE ? 2 : 4) >= 16
typedef uint4 Word;
#elif VEC * (DTYPE ? 2 : 4) == 8
typedef uint2 Word;
#elif VEC * (DTYPE ? 2 : 4) == 4
typedef unsigned Word;
#else
typedef u16 Word;
#endif
#define WORDS (BYTES / sizeof(Word))

struct Rows {
  Word v[ROUNDS][WORDS];

  static __device__ __forceinline__ int at(int round) { return ((threadIdx.x & 31) + 32 * round) * VEC; }
  static __device__ __forceinline__ int row(int round) { return at(round) / WCH; }
  static __device__ __forceinline__ int column(int round) { return at(round) % WCH; }

  // Where a lane finds its values, from the first channel of the warp at the first step.
  static __device__ __forceinline__ i64 start(i64 stride) { return row(0) * stride + column(0); }
  static __device__ __forceinline__ i64 offset(int round, i64 stride) {
    return (row(round) - row(0)) * stride + column(round) - column(0);
  }
  static __device__ __forceinline__ bool there(int round, int rows, int valid) {
    return row(round) < rows && column(round) < valid;
  }

  // `from`: of this lane, see start(). Zeros after `rows` and beyond `valid`.
  __device__ __forceinline__ void load(const T *from, i64 stride, int rows, int valid) {
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      const Word *p = (const Word *)(from + offset(r, stride));
#pragma unroll
      for (int w = 0; w < WORDS; w++) {
        v[r][w] = Word{};
        if (there(r, rows, valid)) v[r][w] = p[w];
      }
    }
  }
  __device__ __forceinline__ void store(T *to, i64 stride, int rows, int valid) const {
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      Word *p = (Word *)(to + offset(r, stride));
#pragma unroll
      for (int w = 0; w < WORDS; w++)
        if (there(r, rows, valid)) p[w] = v[r][w];
    }
  }
#if DTYPE == 0
  __device__ __forceinline__ float get(int r, int k) const { return ((const float *)v[r])[k]; }
  __device__ __forceinline__ void set(int r, const float *all) {
#pragma unroll
    for (int k = 0; k < VEC; k++) ((float *)v[r])[k] = all[k];
  }
#else
  __device__ __forceinline__ float get(int r, int k) const {
    if (VEC == 1) return widen(*(const u16 *)v[r]);
    const unsigned word = ((const unsigned *)v[r])[k / 2];
    return k & 1 ? upper(word) : lower(word);
  }
  __device__ __forceinline__ void set(int r, const float *all) {
    if (VEC == 1) *(u16 *)v[r] = narrow(all[0]);
#pragma unroll
    for (int k = 0; k + 1 < VEC; k += 2) ((unsigned *)v[r])[k / 2] = pack(all[k], all[k + 1]);
  }
#endif
};
// The same tile on its way from memory: every lane fetches what it will read itself, a tile ahead and
// without holding registers for it.
struct Staged {
  Word v[ROUNDS * WORDS][32];

  __device__ __forceinline__ void fetch(const T *from, i64 stride, int rows, int valid) {
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      const Word *p = (const Word *)(from + Rows::offset(r, stride));
      const bool there = Rows::there(r, rows, valid);
#pragma unroll
      for (int w = 0; w < WORDS; w++) {
        Word *to = &v[r * WORDS + w][threadIdx.x & 31];
        if constexpr (sizeof(Word) == 2) {
          *to = there ? p[w] : Word{};
        } else {
          const unsigned address = (unsigned)__cvta_generic_to_shared(to);
          const int bytes = there ? sizeof(Word) : 0;  // the rest is filled with zeros
          if constexpr (sizeof(Word) == 16)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(p + w), "r"(bytes) : "memory");
          else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(p + w), "r"(bytes),
                         "n"(sizeof(Word)) : "memory");
        }
      }
    }
  }
  __device__ __forceinline__ Rows read() const {
    Rows rows;
#pragma unroll
    for (int r = 0; r < ROUNDS; r++)
#pragma unroll
      for (int w = 0; w < WORDS; w++) rows.v[r][w] = v[r * WORDS + w][threadIdx.x & 31];
    return rows;
  }
};
__device__ __forceinline__ void end_fetch() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void await_fetch() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

#define EACH_ROUND(r) _Pragma("unroll") for (int r = 0; r < ROUNDS; r++)
#define EACH_NEIGHBOUR(k) _Pragma("unroll") for (int k = 0; k < VEC; k++)

// The same tile as floats in shared memory. 4 more per row: the rows of a store then hit other banks.
struct alignas(16) Tile {
  float v[TB][WCH + 4];

  __device__ __forceinline__ float *at(int r) { return &v[Rows::row(r)][Rows::column(r)]; }
  __device__ __forceinline__ void put(int r, const float *all) {
    if (VEC >= 4) {
#pragma unroll
      for (int k = 0; k + 3 < VEC; k += 4)
        *(float4 *)(at(r) + k) = make_float4(all[k], all[k + 1], all[k + 2], all[k + 3]);
    } else {
      EACH_NEIGHBOUR(k) at(r)[k] = all[k];
    }
  }
  __device__ __forceinline__ void get(int r, float *all) {
    if (VEC >= 4) {
#pragma unroll
      for (int k = 0; k + 3 < VEC; k += 4) load4(all + k, at(r) + k);
    } else {
      EACH_NEIGHBOUR(k) all[k] = at(r)[k];
    }
  }
};

// ROWS steps of B and C, or of one of them, as floats in shared memory, states permuted.
template <int KINDS, int ROWS = TB>
struct Maps {
  static const int TOTAL = ROWS * KINDS * NPAD, EACH = (TOTAL + NTH - 1) / NTH;
  T held[EACH];  // as they lie in memory: widening here would wait for them

  __device__ __forceinline__ void load(const T *B, i64 Bt, i64 Bn, const T *C, i64 Ct, i64 Cn, i64 rows) {
    // Threads in a row of B or C: then every value of a thread is of the same state.
    const bool regular = NTH % (KINDS * NPAD) == 0;
    const int first = threadIdx.x / (KINDS * NPAD);
    const T *p = nullptr;
    i64 step = 0;
    if (regular) {
      const int n = threadIdx.x % NPAD;
      const bool second = KINDS == 2 && threadIdx.x % (KINDS * NPAD) >= NPAD;
      p = second ? C + first * Ct + n * Cn : B + first * Bt + n * Bn;
      step = (second ? Ct : Bt) * (NTH / (KINDS * NPAD));
      if (n >= N) rows = 0;
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = threadIdx.x + j * NTH, row = i / (KINDS * NPAD), n = i % NPAD;
      const bool second = KINDS == 2 && i % (KINDS * NPAD) >= NPAD;
      held[j] = 0;
      if (regular) {
        if (first + j * (NTH / (KINDS * NPAD)) < rows) held[j] = *p;
        p += step;
      } else if (row < rows && n < N && (TOTAL % NTH == 0 || i < TOTAL)) {
        held[j] = second ? C[row * Ct + n * Cn] : B[row * Bt + n * Bn];
      }
    }
  }
  __device__ __forceinline__ void store(float *to) const {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = threadIdx.x + j * NTH;
      if (TOTAL % NTH == 0 || i < TOTAL) to[i / NPAD * NPAD + position(i % NPAD)] = widen(held[j]);
    }
  }
};

// Values by channel (bias of the steps, skip connection) of the warp; zeros beyond its channels.
struct alignas(16) Vector {
  float v[WCH];
  __device__ __forceinline__ void load(const float *from, const Place &me) {
    for (int k = me.lane; k < WCH; k += 32) v[k] = from && k < me.valid ? from[me.channel + k] : 0.f;
  }
  __device__ __forceinline__ float get(int r, int k) const { return v[Rows::column(r) + k]; }
};
// 1 for a row of the tile in [from, until), else 0: a factor keeps the prologue free of branches.
__device__ __forceinline__ float inside(int r, int from, int until) {
  return Rows::row(r) >= from && Rows::row(r) < until ? 1.f : 0.f;
}

#if defined(CHUNK_ENDS)
// ---------------------------------------------------------------- what a chunk hands on

// ADJOINT 0: the state at the end of the chunk that starts from zero, sum_t 2^(a s_t) d u B with
// s_t the sum of the steps after t; t runs backwards, so that a state is left as soon as 2^(a s_t)
// is below 2^-40 (unless EXACT). ADJOINT 1: what the chunk hands to the left, sum_t 2^(a s_t) dy C
// with s_t the sum of the steps up to t; t runs forwards.
// Adds a tile to the first 4 COUNT states of a thread, and its steps to s.
template <int COUNT>
__device__ __forceinline__ void add_tile(States sum, float *s, const States a, const Tile &size, const Tile &inflow,
                                         const float (*map)[NPAD], const Place &me) {
  float d[2][4], v[2][4], m[2][4];
  const auto need = [&](int k) {
    const int i = ADJOINT ? k : TB - 1 - k;
    load4(d[k & 1], &size.v[i][4 * me.cl]);
    load4(v[k & 1], &inflow.v[i][4 * me.cl]);
    load4(m[k & 1], &map[i][4 * me.sq]);
  };
  need(0);
#pragma unroll
  for (int k = 0; k < TB; k++) {
    const int now = k & 1;
    if (k + 1 < TB) need(k + 1);
    EACH4(q) {
      const float after = s[q] + d[now][q], weight = ADJOINT ? after : s[q];
      s[q] = after;
#pragma unroll
      for (int j = 0; j < COUNT; j++) sum[q][j] = fmaf(ex2(weight * a[q][j]), v[now][q] * m[now][j], sum[q][j]);
    }
  }
}
// How many of a thread's states, up to the last one that some lane has not forgotten after steps of s.
__device__ __forceinline__ int count_alive(const States a, const float *s, const Place &me) {
  int count = 0;
  EACH4(j) {
    float slowest = -1e30f;
    EACH4(k) if (4 * me.cl + k < me.valid && state(me, j) < N) slowest = fmaxf(slowest, a[k][j] * s[k]);
    if (EXACT || !SOFTPLUS || __any_sync(~0u, slowest > FORGOTTEN)) count = j + 1;
  }
  return count;
}

#if SERIES
// The same for a tile in which no state that is still alive decays much: around the middle of the tile,
// 2^(a s_t) = 2^(a s_mid) exp(x), x = a e_t, e_t = (s_t - s_mid) log 2, and with exp as a polynomial
//   sum_t 2^(a s_t) v_t B_t = 2^(a s_mid) sum_k c_k a^k sum_t (e_t^k v_t) B_t,
// of which the inner sums are products of matrices: tensor cores in tf32, the factor on the left in two
// parts where one would show. Relative error of the polynomials up to |x| = reach(): 1.2e-7.
template <int DEGREE> __device__ __forceinline__ constexpr float reach() {
  return DEGREE == 3 ? 0.0635f : DEGREE == 5 ? 0.354f : 0.901f;
}
// c_k / c_(k-1) of exp(x) = 1 + x + c_2 x^2 + ...
template <int DEGREE> __device__ __forceinline__ constexpr float ratio(int k) {
  constexpr float c3[] = {1.f, 1.f, 0.500138144f, 0.16667047f};
  constexpr float c5[] = {1.f, 1.f, 0.499991625f, 0.166671578f, 0.041900112f, 0.00831143798f};
  constexpr float c7[] = {1.f,          1.f,           0.500001383f,  0.166664118f,
                          0.0416523975f, 0.00834143948f, 0.00142436563f, 0.000194295327f};
  const float *c = DEGREE == 3 ? c3 : DEGREE == 5 ? c5 : c7;
  return c[k] / c[k - 1];
}
// What a thread holds of a tile: its 4 channels at steps 2 sq and 2 sq + 1 of the walk.
struct Steps {
  float after[2][4];  // e_t
  float total[4];     // of all steps of the tile
  __device__ __forceinline__ static int row(const Place &me, int k) { return ADJOINT ? 2 * me.sq + k : TB - 1 - 2 * me.sq - k; }
  __device__ __forceinline__ void load(const Tile &size, const Place &me) {
    float d[2][4];
#pragma unroll
    for (int k = 0; k < 2; k++) load4(d[k], &size.v[row(me, k)][4 * me.cl]);
    EACH4(c) {
      const float mine = d[0][c] + d[1][c], next = __shfl_xor_sync(~0u, mine, 1), pair = mine + next;
      const float others = __shfl_xor_sync(~0u, pair, 2);
      total[c] = pair + others;
      const float start = (me.sq & 1 ? next : 0.f) + (me.sq & 2 ? others : 0.f) - 0.5f * total[c];
      after[0][c] = (ADJOINT ? start + d[0][c] : start) * LN2;
      after[1][c] = (ADJOINT ? start + mine : start + d[0][c]) * LN2;
    }
  }
};
// The first 8 2 states; a thread's share of the result is what it holds of them (SL is 4).
template <int DEGREE>
__device__ __forceinline__ void add_series(States sum, const float *s, const States a, const Steps &at, const Tile &inflow,
                                           const float (*map)[NPAD], const Place &me) {
  const int split = DEGREE == 3 ? 2 : DEGREE == 5 ? 3 : 5;  // powers from here on are small enough in one part
  float m[2][2], v[2][4];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    load4(v[k], &inflow.v[Steps::row(me, k)][4 * me.cl]);
#pragma unroll
    for (int p = 0; p < 2; p++) m[p][k] = map[Steps::row(me, k)][me.cl / 2 * 4 + 2 * p + me.cl % 2];
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {  // channels 2 half and 2 half + 1
    float power[DEGREE + 1][4], all[2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float e = at.after[i / 2][2 * half + i % 2];
      power[0][i] = v[i / 2][2 * half + i % 2], power[1][i] = power[0][i] * e;
#pragma unroll
      for (int k = 2; k <= DEGREE; k++) power[k][i] = power[k - 1][i] * (e * ratio<DEGREE>(k));
    }
#pragma unroll
    for (int p = 0; p < 2; p++) EACH4(i) all[p][i] = 0.f;
#pragma unroll
    for (int k = DEGREE; k >= 0; k--) {
      float lead[4], rest[4];
      EACH4(i) {
        if (k < split) lead[i] = leading(power[k][i]), rest[i] = power[k][i] - lead[i];
        else asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(*(unsigned *)&lead[i]) : "f"(power[k][i]));
      }
#pragma unroll
      for (int p = 0; p < 2; p++) {
        if (k < DEGREE) EACH4(i) all[p][i] *= a[2 * half + i / 2][2 * p + i % 2];
#if DTYPE == 0
        const float m0 = leading(m[p][0]), m1 = leading(m[p][1]);
        multiply(all[p], lead, m[p][0] - m0, m[p][1] - m1);
#else
        const float m0 = m[p][0], m1 = m[p][1];
#endif
        if (k < split) multiply(all[p], rest, m0, m1);
        multiply(all[p], lead, m0, m1);
      }
    }
#pragma unroll
    for (int p = 0; p < 2; p++) EACH4(i) {
      const int c = 2 * half + i / 2, j = 2 * p + i % 2;
      sum[c][j] = fmaf(ex2(a[c][j] * fmaf(0.5f, at.total[c], s[c])), all[p][i], sum[c][j]);
    }
  }
}
// The fastest rate of each channel among the states that are not forgotten.
__device__ __forceinline__ void fastest_alive(float *fastest, const States a, const float *s) {
  EACH4(c) {
    fastest[c] = 0.f;
    EACH4(j) if (a[c][j] * s[c] > FORGOTTEN) fastest[c] = fmaxf(fastest[c], fabsf(a[c][j]));
  }
}
// Adds the tile if a series serves; says whether it did.
__device__ __forceinline__ bool try_series(States sum, float *s, const States a, const float *fastest, const Tile &size,
                                           const Tile &inflow, const float (*map)[NPAD], const Place &me) {
  Steps at;
  at.load(size, me);
  float most = 0.f;
  EACH4(c) most = fmaxf(most, fastest[c] * at.total[c]);
  // As unsigned numbers floats that are not negative keep their order; NaN is the largest.
  most = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(most))) * (0.5f * LN2);
  if (!(most <= reach<7>())) return false;
  if (most <= reach<3>()) add_series<3>(sum, s, a, at, inflow, map, me);
  else if (most <= reach<5>()) add_series<5>(sum, s, a, at, inflow, map, me);
  else add_series<7>(sum, s, a, at, inflow, map, me);
  EACH4(c) s[c] += at.total[c];
  return true;
}
#endif

// A warp's share of shared memory.
struct Work {
  Tile size, inflow;  // d; d u, or dy
  Vector shift;
};

extern "C" __global__ void __launch_bounds__(NTH, BLOCKS) chunk_ends(ARGUMENTS) {
  extern __shared__ __align__(16) float memory[];
  float(*maps_at)[NPAD] = (float(*)[NPAD])memory;  // TILES tiles and TILES more
  const Place me = place(blockIdx.y, columns, per_group);
  Work &work = ((Work *)(memory + 2 * TILES * TB * NPAD))[me.warp];
  Tile &size = work.size, &inflow = work.inflow;
  Vector &shift = work.shift;
  shift.load(bias, me);
  __syncwarp();
  const i64 batch = blockIdx.z, c = blockIdx.x + (ADJOINT ? 1 : 0);
  const i64 begin = c * chunk, end = min(begin + chunk, length);
  const int steps = (int)(end - begin), tiles = (steps + TB - 1) / TB;
  const auto index = [&](int tile) { return ADJOINT ? tile : tiles - 1 - tile; };  // in time

  States a, sum;
  load_rates(a, A, me);
  EACH4(k) EACH4(j) sum[k][j] = 0.f;
  const T *map = ADJOINT ? C + batch * Cb + me.group * Cg : B + batch * Bb + me.group * Bg;
  const i64 mt = ADJOINT ? Ct : Bt, mn = ADJOINT ? Cn : Bn;
  // x, or dy and z: of this lane, at the tile that is fetched next.
  const i64 t0 = begin + index(0) * TB, vt = ADJOINT ? dyt : xt, walk = ADJOINT ? TB : -TB;
  const T *pd = dt + batch * dtb + me.channel + t0 * dtt + Rows::start(dtt);
  const T *pv = (ADJOINT ? dy + batch * dyb : x + batch * xb) + me.channel + t0 * vt + Rows::start(vt);
  const T *pz = ADJOINT && HAS_Z ? z + batch * zb + me.channel + t0 * zt + Rows::start(zt) : z;

  float s[4] = {0.f, 0.f, 0.f, 0.f};
  bool cut = false;
  Maps<1, TILES * TB> maps;
  Rows raw, value, gate;
  const auto fetch = [&](int tile) {
    const int rows = steps - index(tile) * TB;
    raw.load(pd, dtt, rows, me.valid), pd += walk * dtt;
    value.load(pv, vt, rows, me.valid), pv += walk * vt;
    if (ADJOINT && HAS_Z) gate.load(pz, zt, rows, me.valid), pz += walk * zt;
  };
  // The tiles from `first` of the walk on share a piece of B or C; in time, it begins with this one.
  const auto index_of_maps = [&](int first) { return ADJOINT ? first : index(min(first + TILES, tiles) - 1); };
  const auto fetch_maps = [&](int first) {
    const int from = index_of_maps(first) * TB;
    const T *at = map + (begin + from) * mt;
    maps.load(at, mt, mn, at, mt, mn, steps - from);
  };
  fetch_maps(0), fetch(0);
  for (int first = 0; first < tiles && !cut; first += TILES) {
    float(*here)[NPAD] = maps_at + first % (2 * TILES) * TB;
    maps.store(&here[0][0]);
    const int count = count_alive(a, s, me);
    if (!__syncthreads_or(count)) break;
    if (first + TILES < tiles) fetch_maps(first + TILES);
    if (!PACKED && count == 0) continue;
#if SERIES
    float fastest[4];
    if (count > 2) fastest_alive(fastest, a, s);
#endif
    const int tiles_here = min(TILES, tiles - first), low = index_of_maps(first);
    for (int k = 0; k < tiles_here && !cut; k++) {
      const int tile = index(first + k), rows = steps - tile * TB;
      // In a packed row a chunk hands on only what belongs to the sequence at its border.
      int from = 0, until = min(TB, rows);
#if PACKED
      const i64 packed_tile = begin / TB + tile;
      const int flags = resets[packed_tile];
      if (flags && !ADJOINT) from = 31 - __clz(flags);
      if (flags && ADJOINT) until = min(until, __ffs(flags) - 1);
      cut = flags != 0;
#endif
      EACH_ROUND(r) {
        // Chunks before the last are whole tiles: the last one hands nothing to the right.
        const float there = ADJOINT || PACKED ? inside(r, from, until) : 1.f;
        float d[VEC], v[VEC];
        EACH_NEIGHBOUR(k) {
          d[k] = there * step_size(raw.get(r, k) + shift.get(r, k));
          v[k] = value.get(r, k) * (ADJOINT ? there : d[k]);
          if (ADJOINT && HAS_Z) v[k] *= gate.get(r, k) * sigmoid(gate.get(r, k));
        }
        size.put(r, d), inflow.put(r, v);
      }
      if (first + k + 1 < tiles) fetch(first + k + 1);
      __syncwarp();
      const float(*map_rows)[NPAD] = here + (tile - low) * TB;
#if SERIES
      const bool done = count > 2 && try_series(sum, s, a, fastest, size, inflow, map_rows, me);
#else
      const bool done = false;
#endif
      if (!done) {
        if (count == 4) add_tile<4>(sum, s, a, size, inflow, map_rows, me);
        if (count == 3) add_tile<3>(sum, s, a, size, inflow, map_rows, me);
        if (count == 2) add_tile<2>(sum, s, a, size, inflow, map_rows, me);
        if (count == 1) add_tile<1>(sum, s, a, size, inflow, map_rows, me);
      }
      __syncwarp();
#if PACKED
      if (cut) {
        // The state that the sequence starts from, or the gradient of the one it ends with.
        const i64 sequence = before[packed_tile] + (ADJOINT ? 0 : __popc(flags));
        const float *given = ADJOINT ? dlast : initial;
        States edge;
        load_states(edge, given ? given + sequence * channels * N : given, me);
        EACH4(q) EACH4(j) sum[q][j] = fmaf(ex2(a[q][j] * s[q]), edge[q][j], sum[q][j]);
      }
#endif
    }
  }
  const i64 at = (batch * chunks + c) * channels;
  store_states(ends + at * N, sum, me);
  // NaN: nothing of what enters the chunk leaves it.
  EACH4(q) if (me.sq == 0 && 4 * me.cl + q < me.valid)
    sums[at + me.channel + 4 * me.cl + q] = cut ? __int_as_float(0x7fffffff) : s[q];
}

#elif defined(CHUNK_FOLD)
#define FOLD 16
// Chain what `chunk_ends` found: `starts` becomes what enters each chunk, of which `ends` and `sums`
// hold `pieces` each (the last chunk maybe fewer). One thread per (batch, channel, state).
extern "C" __global__ void __launch_bounds__(256)
    chunk_fold(const float *__restrict__ ends, const float *__restrict__ sums, const float *__restrict__ A,
               const float *__restrict__ first, float *__restrict__ starts, i64 states, i64 total,
               i64 count, i64 pieces_, i64 backwards) {
  const i64 i = blockIdx.x * 256ll + threadIdx.x, batch = blockIdx.y;
  if (i >= count) return;
  const float a = A[i] * LOG2E;
  float carry = first ? first[batch * count + i] : 0.f;
  const int pieces = (int)pieces_, log = __ffs(pieces) - 1, chunks = ((int)total + pieces - 1) >> log;
  const int apart = count / states;
  for (int k0 = 0; k0 < total; k0 += FOLD) {
    float s[FOLD], end[FOLD];  // fetched together: one after the other they would be waited for
#pragma unroll
    for (int k = 0; k < FOLD; k++) {
      const int piece = min(k0 + k, (int)total - 2), at = backwards ? (int)total - 1 - piece : piece;
      const i64 c = batch * total + at;
      s[k] = sums[c * apart + i / states], end[k] = ends[c * count + i];
    }
#pragma unroll
    for (int k = 0; k < FOLD; k++) {
      if (k0 + k >= total) break;
      const int piece = backwards ? (int)total - 1 - k0 - k : k0 + k, within = piece & (pieces - 1);
      const bool enters = backwards ? within == pieces - 1 || k0 + k == 0 : within == 0;
      if (enters) starts[(batch * chunks + (piece >> log)) * count + i] = carry;
      carry = s[k] == s[k] ? fmaf(ex2(a * s[k]), carry, end[k]) : end[k];
    }
  }
}

#elif defined(FORWARD)
// ---------------------------------------------------------------- forward

// A warp's share of shared memory.
struct Work {
  Tile size, inflow;  // d; d u, then y
  Vector shift, through;
};

extern "C" __global__ void __launch_bounds__(NTH, BLOCKS) forward(ARGUMENTS) {
  extern __shared__ __align__(16) float memory[];
  float(*maps_at)[ROW] = (float(*)[ROW])memory;  // TILES tiles and TILES more
  const Place me = place(blockIdx.y, columns, per_group);
  Work &work = ((Work *)(memory + 2 * TILES * TB * ROW))[me.warp];
  Tile &size = work.size, &inflow = work.inflow;
  Vector &shift = work.shift, &through = work.through;
  shift.load(bias, me), through.load(skip, me);
  __syncwarp();
  const i64 batch = blockIdx.z, c = blockIdx.x;
  const i64 begin = c * chunk, end = min(begin + chunk, length);

  States a, h;
  load_rates(a, A, me);
  load_states(h, starts ? starts + (batch * chunks + c) * channels * N : starts, me);
  const i64 first = me.channel;
  const T *px = x + batch * xb + begin * xt + first + Rows::start(xt);
  const T *pd = dt + batch * dtb + begin * dtt + first + Rows::start(dtt);
  const T *pz = HAS_Z ? z + batch * zb + begin * zt + first + Rows::start(zt) : z;
  T *py = y + batch * yb + begin * yt + first + Rows::start(yt);
  const T *pB = B + batch * Bb + begin * Bt + me.group * Bg, *pC = C + batch * Cb + begin * Ct + me.group * Cg;
  float4 *next_mark = mark(marks, batch, begin / CK, per_group, groups, me, marks_b);
  const i64 marks_apart = mark(marks, batch, 1, per_group, groups, me, marks_b) -
                          mark(marks, batch, 0, per_group, groups, me, marks_b);
#if PACKED
  i64 sequence = before[begin / TB];
#endif

  Maps<2, TILES * TB> maps;
  Rows raw, u, gate, next_u, next_gate;
  int rows = (int)(end - begin);  // from the tile on
  maps.load(pB, Bt, Bn, pC, Ct, Cn, rows);
  raw.load(pd, dtt, rows, me.valid);
  next_u.load(px, xt, rows, me.valid);
  if (HAS_Z) next_gate.load(pz, zt, rows, me.valid);
  for (int tile = 0; rows > 0; tile++, rows -= TB) {
    const int inside_maps = tile % TILES;
    float(*here)[ROW] = maps_at + tile % (2 * TILES) * TB;
    if (inside_maps == 0) maps.store(&here[0][0]);
    if (tile % (CK / TB) == 0) {
      if (marks && me.valid > 0) store_mark(next_mark, h, 32);
      next_mark += marks_apart;
    }
    u = next_u, gate = next_gate;
    EACH_ROUND(r) {
      const float there = inside(r, 0, rows);
      float d[VEC], in[VEC];
      EACH_NEIGHBOUR(k) {
        d[k] = there * step_size(raw.get(r, k) + shift.get(r, k));
        in[k] = d[k] * u.get(r, k);
      }
      size.put(r, d), inflow.put(r, in);
    }
    if (inside_maps == 0) {
      __syncthreads();
      pB += TILES * TB * Bt, pC += TILES * TB * Ct;
      maps.load(pB, Bt, Bn, pC, Ct, Cn, rows - TILES * TB);
    }
    __syncwarp();
    pd += TB * dtt, px += TB * xt, pz += TB * zt;
    raw.load(pd, dtt, rows - TB, me.valid);
    next_u.load(px, xt, rows - TB, me.valid);
    if (HAS_Z) next_gate.load(pz, zt, rows - TB, me.valid);
#if PACKED
    const int flags = resets[begin / TB + tile];
#endif
    // What step i + 1 needs is fetched before step i is computed, and the sums of step i are finished
    // after step i + 1: a warp waits neither for shared memory nor for shuffles.
    float d[2][4], in[2][4], b[2][4], m[2][4], out[2][4];
    const auto fetch = [&](int i) {
      load4(d[i & 1], &size.v[i][4 * me.cl]);
      load4(in[i & 1], &inflow.v[i][4 * me.cl]);
      load4(b[i & 1], &here[i][4 * me.sq]);
      load4(m[i & 1], &here[i][NPAD + 4 * me.sq]);
    };
    const auto finish = [&](int i) {
      sum4<1, SL>(out[i & 1]);
#pragma unroll
      for (int q = 0; q < OWN_CHANNELS; q++)
        if (me.sq < 4) inflow.v[i][4 * me.cl + owned<1, SL>() + q] = out[i & 1][q];
    };
    fetch(0);
#pragma unroll
    for (int i = 0; i < TB; i++) {
#if PACKED
      if (flags >> i & 1) {
        if (sequence >= 0) store_states(last + sequence * channels * N, h, me);
        sequence++;
        load_states(h, initial ? initial + sequence * channels * N : initial, me);
      }
#endif
      const int now = i & 1;
      if (i + 1 < TB) fetch(i + 1);
      EACH4(q) {
        out[now][q] = 0.f;
        EACH4(j) {
          h[q][j] = fmaf(ex2(d[now][q] * a[q][j]), h[q][j], in[now][q] * b[now][j]);
          out[now][q] = fmaf(h[q][j], m[now][j], out[now][q]);
        }
      }
      if (i > 0) finish(i - 1);
    }
    finish(TB - 1);
    __syncwarp();
    EACH_ROUND(r) {
      float result[VEC];
      inflow.get(r, result);
      EACH_NEIGHBOUR(k) {
        result[k] = fmaf(through.get(r, k), u.get(r, k), result[k]);
        if (HAS_Z) result[k] *= gate.get(r, k) * sigmoid(gate.get(r, k));
      }
      u.set(r, result);
    }
    u.store(py, yt, rows, me.valid);
    py += TB * yt;
  }
  if (end < length) return;
#if PACKED
  store_states(last + sequence * channels * N, h, me);
#else
  store_states(last + batch * channels * N, h, me);
#endif
}

#elif defined(BACKWARD)
// ---------------------------------------------------------------- backward

// Steps of B and C that a block brings in at once, up to 16 values per thread.
#define MAP_ROWS (CK * ROW <= 16 * NTH ? CK : TB)

// A warp's share of shared memory.
struct Work {
  Tile size, value, grad, slope;  // d, then its gradient; u, then dx; dy; dz
#if OUTPUT
  Tile output;  // silu(z), then y
#endif
  Staged step, input, grad_y, gate;
  float sum_B[2 * GATHER][TB][NPAD], sum_C[2 * GATHER][TB][NPAD];  // of these tiles and of those before
  Vector shift;
};

// d and u, or d and d u, of a tile of the warp.
__device__ __forceinline__ void prepare(Work &work, i64 steps, bool inflow) {
  await_fetch();
  const Rows raw = work.step.read(), u = work.input.read();
  EACH_ROUND(r) {
    const float there = inside(r, 0, steps);
    float d[VEC], v[VEC];
    EACH_NEIGHBOUR(k) {
      d[k] = there * step_size(raw.get(r, k) + work.shift.get(r, k));
      v[k] = inflow ? d[k] * u.get(r, k) : u.get(r, k);
    }
    work.size.put(r, d), work.value.put(r, v);
  }
}
// dy before the gate, and the gradient of the gate but for the factor y; so y but for that factor.
__device__ __forceinline__ void prepare_gradients(Work &work) {
  const Rows got = work.grad_y.read(), gate = work.gate.read();
  EACH_ROUND(r) {
    float g[VEC], slope[VEC], through[VEC];
    EACH_NEIGHBOUR(k) {
      g[k] = got.get(r, k), through[k] = 1.f;
      if (HAS_Z) {
        const float v = gate.get(r, k), open = sigmoid(v);
        slope[k] = g[k] * open * fmaf(v, 1.f - open, 1.f);
        through[k] = v * open;
        g[k] *= through[k];
      }
    }
    work.grad.put(r, g);
    if (HAS_Z) work.slope.put(r, slope);
#if OUTPUT
    work.output.put(r, through);
#endif
  }
}

// Blocks take (channels, chunk, row) by turns, so that the scratch is as large as the device, not the problem.
extern "C" __global__ void __launch_bounds__(NTH, BLOCKS) backward(ARGUMENTS) {
  extern __shared__ __align__(16) float memory[];
  float *maps_at = memory;  // B and C of a segment
  Work *works = (Work *)(memory + CK * ROW);
  Work &work = works[threadIdx.x >> 5];
  float4 *inner = scratch + ((i64)blockIdx.x * NWARP + (threadIdx.x >> 5)) * (CK / TB - 1) * 128 + (threadIdx.x & 31);

  for (i64 item = blockIdx.x; item < columns * groups * chunks * batches; item += gridDim.x) {
    const i64 column = item % (columns * groups), c = item / (columns * groups) % chunks;
    const i64 batch = item / (columns * groups) / chunks;
    const Place me = place(column, columns, per_group);
    const i64 begin = c * chunk, end = min(begin + chunk, length);

    States a, carry, grad_a;
    load_rates(a, A, me);
    load_states(carry, starts ? starts + (batch * chunks + c) * channels * N : starts, me);
    __syncthreads();
    work.shift.load(bias, me);
    __syncwarp();
    EACH4(q) EACH4(j) grad_a[q][j] = 0.f;
    const int mine = 4 * me.cl + owned<1, SL>();  // the first channel whose sums over states end up here
    float through[OWN_CHANNELS], grad_skip[OWN_CHANNELS], grad_bias[OWN_CHANNELS];
#pragma unroll
    for (int q = 0; q < OWN_CHANNELS; q++) {
      through[q] = skip && mine + q < me.valid ? skip[me.channel + mine + q] : 0.f;
      grad_skip[q] = grad_bias[q] = 0.f;
    }
    const T *px = x + batch * xb + me.channel + Rows::start(xt);
    const T *pd = dt + batch * dtb + me.channel + Rows::start(dtt);
    const T *pz = z + batch * zb + me.channel + Rows::start(zt);
    const T *pg = dy + batch * dyb + me.channel + Rows::start(dyt);
    const i64 out = batch * yb + me.channel + Rows::start(yt);  // dx, ddt, y and dz lie alike
#if OVER_Z
    const i64 out_of_gate = batch * dzb + me.channel + Rows::start(dzt);
#endif

    for (i64 segment = (end - begin + CK - 1) / CK - 1; segment >= 0; segment--) {
      const i64 t0 = begin + segment * CK;
      const int tiles = (int)min((i64)(CK / TB), (end - t0 + TB - 1) / TB);
      const auto fetch = [&](i64 t, bool all) {
        work.step.fetch(pd + t * dtt, dtt, end - t, me.valid);
        work.input.fetch(px + t * xt, xt, end - t, me.valid);
        if (all) work.grad_y.fetch(pg + t * dyt, dyt, end - t, me.valid);
        if (all && HAS_Z) work.gate.fetch(pz + t * zt, zt, end - t, me.valid);
        end_fetch();
      };
      fetch(t0, tiles == 1);
      const float4 *saved = mark(marks, batch, t0 / CK, per_group, groups, me, marks_b);
      States h;
      EACH4(q) EACH4(j) h[q][j] = 0.f;
      if (me.valid > 0) load_mark(h, saved, 32);
      for (int row = 0; row < tiles * TB; row += MAP_ROWS) {
        Maps<2, MAP_ROWS> maps;
        maps.load(B + batch * Bb + (t0 + row) * Bt + me.group * Bg, Bt, Bn,
                  C + batch * Cb + (t0 + row) * Ct + me.group * Cg, Ct, Cn, end - t0 - row);
        maps.store(maps_at + row * ROW);
      }
      __syncthreads();

      // Phase 1: the state before every tile but the first.
#pragma unroll 1
      for (int tile = 0; tile < tiles - 1; tile++) {
        const i64 t = t0 + tile * TB;
        __syncwarp();
        prepare(work, end - t, true);
        __syncwarp();
        fetch(t + TB, tile == tiles - 2);
#if PACKED
        const int flags = resets[t / TB];
        i64 sequence = before[t / TB];
#endif
        float d[2][4], in[2][4], b[2][4];
        const auto need = [&](int i) {
          load4(d[i & 1], &work.size.v[i][4 * me.cl]);
          load4(in[i & 1], &work.value.v[i][4 * me.cl]);
          load4(b[i & 1], maps_at + (tile * TB + i) * ROW + 4 * me.sq);
        };
        need(0);
#pragma unroll
        for (int i = 0; i < TB; i++) {
#if PACKED
          if (flags >> i & 1) {
            sequence++;
            load_states(h, initial ? initial + sequence * channels * N : initial, me);
          }
#endif
          const int now = i & 1;
          if (i + 1 < TB) need(i + 1);
          EACH4(q) EACH4(j) h[q][j] = fmaf(ex2(d[now][q] * a[q][j]), h[q][j], in[now][q] * b[now][j]);
        }
        store_scratch(inner + tile * 128, h);
      }

      // Phase 2: tiles in reverse; their states in registers, then the adjoint.
      if (tiles > 1) load_scratch(h, inner + (tiles - 2) * 128);
      if (tiles == 1 && me.valid > 0) load_mark(h, saved, 32);
#pragma unroll 1
      for (int tile = tiles - 1; tile >= 0; tile--) {
        const i64 t = t0 + tile * TB, steps = end - t;
        __syncwarp();
        prepare(work, steps, false);
        prepare_gradients(work);
        __syncwarp();
        if (tile) fetch(t - TB, true);
        const float *rows = maps_at + tile * TB * ROW + 4 * me.sq;
        float(*sum_B)[NPAD] = work.sum_B[tile % (2 * GATHER)], (*sum_C)[NPAD] = work.sum_C[tile % (2 * GATHER)];
#if PACKED
        const int flags = resets[t / TB];
        i64 sequence = before[t / TB];
#endif
        // As in the forward: fetched a step before they are used, sums finished a step after.
        float d[2][4], u[2][4], g[2][4], b[2][4], m[2][4];
        const auto need = [&](int i, bool maps_of_y) {
          load4(d[i & 1], &work.size.v[i][4 * me.cl]);
          load4(u[i & 1], &work.value.v[i][4 * me.cl]);
          load4(g[i & 1], &work.grad.v[i][4 * me.cl]);
          load4(b[i & 1], rows + i * ROW);
          if (maps_of_y) load4(m[i & 1], rows + i * ROW + NPAD);
        };
        States past[TB];  // past[i]: before step i
        {
          float y_core[2][4], grad_C[2][4];
          const auto finish = [&](int i) {
            sum4<SL, CL>(grad_C[i & 1]);
#pragma unroll
            for (int j = 0; j < OWN_STATES; j++)
              if (me.cl < 4) sum_C[i][4 * me.sq + owned<SL, CL>() + j] = grad_C[i & 1][j];
            if (HAS_Z || OUTPUT) {
              sum4<1, SL>(y_core[i & 1]);
#pragma unroll
              for (int q = 0; q < OWN_CHANNELS; q++) {
                const float y_open = fmaf(through[q], work.value.v[i][mine + q], y_core[i & 1][q]);
                if (HAS_Z && me.sq < 4) work.slope.v[i][mine + q] *= y_open;
#if OUTPUT
                if (me.sq < 4) work.output.v[i][mine + q] *= y_open;
#endif
              }
            }
          };
          need(0, HAS_Z || OUTPUT);
#pragma unroll
          for (int i = 0; i < TB; i++) {
#if PACKED
            if (flags >> i & 1) {
              sequence++;
              load_states(h, initial ? initial + sequence * channels * N : initial, me);
            }
#endif
            const int now = i & 1;
            if (i + 1 < TB) need(i + 1, HAS_Z || OUTPUT);
            EACH4(k) y_core[now][k] = grad_C[now][k] = 0.f;
            EACH4(q) {
              const float in = d[now][q] * u[now][q];
              EACH4(j) {
                past[i][q][j] = h[q][j];
                h[q][j] = fmaf(ex2(d[now][q] * a[q][j]), h[q][j], in * b[now][j]);
                if (HAS_Z || OUTPUT) y_core[now][q] = fmaf(h[q][j], m[now][j], y_core[now][q]);
                grad_C[now][j] = fmaf(g[now][q], h[q][j], grad_C[now][j]);
              }
            }
            if (i > 0) finish(i - 1);
          }
          finish(TB - 1);
        }
        {
          float grad_B[2][4], by_decay[2][4], by_inflow[2][4];
          const auto finish = [&](int i) {
            sum4<SL, CL>(grad_B[i & 1]);
#pragma unroll
            for (int j = 0; j < OWN_STATES; j++)
              if (me.cl < 4) sum_B[i][4 * me.sq + owned<SL, CL>() + j] = grad_B[i & 1][j];
            sum4<1, SL>(by_decay[i & 1]);
            sum4<1, SL>(by_inflow[i & 1]);
            if (SL == 1) __syncwarp();
#pragma unroll
            for (int q = 0; q < OWN_CHANNELS; q++) {
              const float size = work.size.v[i][mine + q], value = work.value.v[i][mine + q];
              const float grad = work.grad.v[i][mine + q], inflow = by_inflow[i & 1][q];
              const float slope = fmaf(by_decay[i & 1][q], LN2, inflow * value) * step_slope(size);
              if (SL > 4) __syncwarp();
              if (me.sq < 4) {
                work.size.v[i][mine + q] = slope;
                work.value.v[i][mine + q] = fmaf(inflow, size, through[q] * grad);
              }
              grad_skip[q] = fmaf(grad, value, grad_skip[q]);
              if (i < steps) grad_bias[q] += slope;
            }
          };
          need(TB - 1, true);
#pragma unroll
          for (int i = TB - 1; i >= 0; i--) {
            const int now = i & 1;
            if (i > 0) need(i - 1, true);
            EACH4(k) grad_B[now][k] = by_decay[now][k] = by_inflow[now][k] = 0.f;
            EACH4(q) {
              const float in = d[now][q] * u[now][q];
              EACH4(j) {
                const float adjoint = fmaf(g[now][q], m[now][j], carry[q][j]);
                carry[q][j] = ex2(d[now][q] * a[q][j]) * adjoint;
                const float w = carry[q][j] * past[i][q][j];
                by_decay[now][q] = fmaf(w, a[q][j], by_decay[now][q]);
                grad_a[q][j] = fmaf(w, d[now][q], grad_a[q][j]);
                by_inflow[now][q] = fmaf(adjoint, b[now][j], by_inflow[now][q]);
                grad_B[now][j] = fmaf(adjoint, in, grad_B[now][j]);
              }
            }
            if (i < TB - 1) finish(i + 1);
            if (i == TB / 2) {  // registers are free by now for the state of the next tile
              if (tile > 1) load_scratch(h, inner + (tile - 2) * 128);
              if (tile == 1 && me.valid > 0) load_mark(h, saved, 32);
            }
#if PACKED
            if (flags >> i & 1) {
              if (dinitial) store_states(dinitial + sequence * channels * N, carry, me);
              sequence--;
              load_states(carry, sequence >= 0 ? dlast + sequence * channels * N : nullptr, me);
            }
#endif
          }
          finish(0);
        }
        __syncwarp();
        {
          const auto write = [&](Tile &tile, T *to, i64 stride) {
            Rows result;
            EACH_ROUND(r) result.set(r, tile.at(r));
            result.store(to, stride, steps, me.valid);
          };
          write(work.value, dx + out + t * yt, yt);
          write(work.size, ddt + out + t * yt, yt);
#if OVER_Z
          write(work.slope, dz + out_of_gate + t * dzt, dzt);
#else
          if (HAS_Z) write(work.slope, dz + out + t * yt, yt);
#endif
#if OUTPUT
          write(work.output, y + out + t * yt, yt);
#endif
        }
        if (tile % GATHER == 0) {
          __syncthreads();
          float *to = dmaps + ((column * batches + batch) * length + t) * ROW;
          for (int k = threadIdx.x; k < min((i64)GATHER * TB, end - t) * ROW; k += NTH) {
            const int from = (tile + k / (TB * ROW)) % (2 * GATHER), row = k / ROW % TB, n = k % NPAD;
            float v = 0.f;
#pragma unroll
            for (int w = 0; w < NWARP; w++)
              v += k % ROW < NPAD ? works[w].sum_B[from][row][n] : works[w].sum_C[from][row][n];
            to[k] = v;
          }
        }
      }
    }
    // Sums over the chunk: dA (D, N), then of the skip connection (D), then of the bias (D).
    float *sums_at = by_chunk + (batch * chunks + c) * channels * (N + 2);
    store_states(sums_at, grad_a, me);
#pragma unroll
    for (int q = 0; q < OWN_CHANNELS; q++)
      if (me.sq < 4 && mine + q < me.valid) {
        sums_at[channels * N + me.channel + mine + q] = grad_skip[q];
        sums_at[channels * (N + 1) + me.channel + mine + q] = grad_bias[q];
      }
    if (c == 0) store_states(handed + batch * channels * N, carry, me);
  }
}

#elif defined(REDUCE_MAPS)
// dB and dC: the channel blocks of a group added up. (columns, B, L, 2, NPAD) -> two (B, L, G, N).
extern "C" __global__ void __launch_bounds__(256)
    reduce_maps(const float *__restrict__ dmaps, T *__restrict__ dB, T *__restrict__ dC, i64 columns, i64 groups,
                i64 length, i64 ob, i64 ot, i64 rows) {
  const i64 i = blockIdx.x * 256ll + threadIdx.x, per_row = 2 * groups * N;
  const i64 row = i / per_row, v = i % per_row, n = v % N, group = v / N % groups, second = v / N / groups;
  if (row >= rows) return;
  float sum = 0.f;
  for (i64 k = group * columns; k < (group + 1) * columns; k++)
    sum += dmaps[(k * rows + row) * ROW + second * NPAD + position(n)];
  T *to = second ? dC : dB;
  to[row / length * ob + row % length * ot + group * N + n] = narrow(sum);
}
#endif
