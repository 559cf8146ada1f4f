// What the kernels of the selective scan share, for NVIDIA GPUs: each is compiled at run time from this file
// and its own behind it (walk.py says which), so no header. ../README.md, section cuda, says how the work is
// laid out and why.
//
// A thread holds NC channels x 4 states in registers and walks time. SL threads share NC channels,
// CL threads share 4 states; together they are a warp, which owns WCH channels with all N states. NC is 4;
// 2 or 1 make more warps of as many channels, in `forward` and (2) `chunk_ends`.
// What depends on the channel alone (softplus, gates, loads, stores) is done between, TB steps at a
// time, VEC neighbouring channels per thread, and passes through shared memory.
//
// L is cut in chunks that run side by side: `chunk_ends` finds what each chunk hands on, `chunk_fold`
// chains them, and `forward` or `backward` walks each chunk from the right state; `reduce_maps` adds up
// dB and dC.
//
// Macros, all set by walk.py: DTYPE (0 float, 1 bf16, 2 fp16); N states; NC; TB steps of a tile; SL; VEC; NTH
// threads of a block, BLOCKS of them per multiprocessor; CK steps between saved states; HELD steps of B and C
// that the backward holds; TILES of which the others bring them in at once; GATHER tiles whose dB and dC are
// summed over the warps at once; EARLY steps of a tile whose states wait in shared memory, SIZES tiles whose step
// sizes stay there; SOFTPLUS, HAS_Z, PACKED, ADJOINT, EXACT (never stop early), DZ_APART (dz lies by strides of its
// own, not as dx and ddt do), OUTPUT (the backward writes y as well: 1 as dx lies, 2 as dz).

typedef long long i64;
typedef unsigned short u16;

#define GROUP (4 / NC)               // steps of which a thread takes 4 numbers at once
#define FLAGGED 8                    // steps of a byte of `resets`
#define NPAD (4 * SL)                // states with padding: A = B = C = 0 there
#define CL (32 / SL)                 // threads of a warp side by side along the channels
#define WCH (NC * CL)                // channels of a warp
#define NWARP (NTH / 32)
#define ROUNDS (TB * WCH / (32 * VEC))
#define ROW (2 * NPAD)               // a step of B and C
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define FORGOTTEN (-40.f)            // log2 of the weight below which a state is not carried on
#define EACH4(k) _Pragma("unroll") for (int k = 0; k < 4; k++)
#define EACH_CHANNEL(k) _Pragma("unroll") for (int k = 0; k < NC; k++)

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

// The big kernels take the same list; walk.py fills it by name. No __restrict__ where a result may lie over what
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
      i64 Cn, i64 yb, i64 yt, i64 dyb, i64 dyt, i64 dxb, i64 dxt, i64 dzb, i64 dzt, i64 marks_b,  \
      i64 stretch, i64 pieces

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
__device__ __forceinline__ float sigmoid(float v) { return rcp(1.f + ex2(-v * LOG2E)); }

// ---------------------------------------------------------------- sums over lanes

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
#define OWN_SUMS (SL >= 4 ? 1 : 4 / SL)  // sums over states that a lane ends with
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

// The chunks of the backward are cut from all rows laid end to end, `stretch` steps each: where the second chunk of a
// row begins, or beyond the row's end.
__device__ __forceinline__ i64 second_chunk(i64 row, i64 stretch, i64 chunk) { return chunk - row * stretch % chunk; }

typedef float States[NC][4];  // channel, state

// From or to a (D, N) array; zeros where there is none.
__device__ __forceinline__ void load_states(States h, const float *from, const Place &me) {
  EACH_CHANNEL(c) EACH4(j) {
    const bool there = from && NC * me.cl + c < me.valid && state(me, j) < N;
    h[c][j] = there ? from[(me.channel + NC * me.cl + c) * N + state(me, j)] : 0.f;
  }
}
__device__ __forceinline__ void store_states(float *to, const States h, const Place &me) {
  EACH_CHANNEL(c) EACH4(j) {
    if (NC * me.cl + c < me.valid && state(me, j) < N)
      to[(me.channel + NC * me.cl + c) * N + state(me, j)] = h[c][j];
  }
}
// Decay rates in units of log 2.
__device__ __forceinline__ void load_rates(States a, const float *A, const Place &me) {
  load_states(a, A, me);
  EACH_CHANNEL(c) EACH4(j) a[c][j] *= LOG2E;
}

// Marks: (B, marks, warps of all groups, 4, 32) float4, just as threads hold them that have 4 channels.
__device__ __forceinline__ float4 *mark(float4 *marks, i64 batch, i64 index, i64 per_group, i64 groups,
                                        const Place &me, i64 marks_b) {
  const i64 wide = 4 * CL, warps = (per_group + wide - 1) / wide, inside = me.channel - me.group * per_group;
  const i64 mine = (index * groups + me.group) * warps + inside / wide;
  const int channel = (int)(inside % wide) + NC * me.cl;
  return marks + batch * marks_b + mine * 128 + channel % 4 * 32 + channel / 4 * SL + me.sq;
}
// Whether the warp has a share of them: also of channels that only fill the last 4 CL of a group, as zeros.
__device__ __forceinline__ bool has_marks(i64 per_group, const Place &me) {
  const i64 inside = me.channel - me.group * per_group;
  return inside < (per_group + 4 * CL - 1) / (4 * CL) * (4 * CL);
}
template <typename Address>
__device__ __forceinline__ void load_mark(States h, const Address *from, i64 apart) {
  EACH_CHANNEL(c) {
    const float4 v = from[c * apart];
    h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
  }
}
__device__ __forceinline__ void store_mark(float4 *to, const States h, i64 apart) {
  EACH_CHANNEL(c) to[c * apart] = make_float4(h[c][0], h[c][1], h[c][2], h[c][3]);
}
__device__ __forceinline__ void load4(float *v, const float *from) {
  const float4 all = *(const float4 *)from;
  v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
}

// ---------------------------------------------------------------- tiles

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

#define EACH_ROUND(r) _Pragma("unroll") for (int r = 0; r < ROUNDS; r++)
#define EACH_NEIGHBOUR(k) _Pragma("unroll") for (int k = 0; k < VEC; k++)

// The same tile as floats in shared memory: a row is GROUP steps, in it the 4 numbers of a thread, NC channels
// of each step, lie together. 4 more per row: the rows of a store then hit other banks.
struct alignas(16) Tile {
  float v[TB / GROUP][4 * CL + 4];

  // Of neighbour k in a round. NC of them lie side by side.
  __device__ __forceinline__ float *at(int r, int k) {
    const int step = Rows::row(r), channel = Rows::column(r) + k;
    return &v[step / GROUP][channel / NC * 4 + step % GROUP * NC + channel % NC];
  }
  __device__ __forceinline__ void put(int r, const float *all) {
    if (VEC >= 4 && NC == 4) {
#pragma unroll
      for (int k = 0; k + 3 < VEC; k += 4)
        *(float4 *)at(r, k) = make_float4(all[k], all[k + 1], all[k + 2], all[k + 3]);
    } else if (VEC >= 2 && NC == 2) {
#pragma unroll
      for (int k = 0; k + 1 < VEC; k += 2) *(float2 *)at(r, k) = make_float2(all[k], all[k + 1]);
    } else {
      EACH_NEIGHBOUR(k) *at(r, k) = all[k];
    }
  }
  __device__ __forceinline__ void get(int r, float *all) {
    if (VEC >= 4 && NC == 4) {
#pragma unroll
      for (int k = 0; k + 3 < VEC; k += 4) load4(all + k, at(r, k));
    } else if (VEC >= 2 && NC == 2) {
#pragma unroll
      for (int k = 0; k + 1 < VEC; k += 2) {
        const float2 two = *(const float2 *)at(r, k);
        all[k] = two.x, all[k + 1] = two.y;
      }
    } else {
      EACH_NEIGHBOUR(k) all[k] = *at(r, k);
    }
  }
};

// ---------------------------------------------------------------- B and C

// ROWS steps of B and C, or of one of them, in shared memory, states permuted.
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
  // As floats, a row of each kind after the other.
  __device__ __forceinline__ void store(float *to) const {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = threadIdx.x + j * NTH;
      if (TOTAL % NTH == 0 || i < TOTAL) to[i / NPAD * NPAD + position(i % NPAD)] = widen(held[j]);
    }
  }
  // As they lie in memory, the 4 of B and the 4 of C that a thread takes side by side.
  __device__ __forceinline__ void store_narrow(T *to) const {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = threadIdx.x + j * NTH, n = i % NPAD, kind = i / NPAD % KINDS;
      if (TOTAL % NTH == 0 || i < TOTAL)
        to[i / (KINDS * NPAD) * (KINDS * NPAD) + n % SL * (4 * KINDS) + 4 * kind + n / SL] = held[j];
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
// The same in registers: what a lane needs of them.
struct Held {
  float v[ROUNDS][VEC];
  __device__ __forceinline__ void load(const float *from, const Place &me) {
    EACH_ROUND(r) EACH_NEIGHBOUR(k) {
      const int column = Rows::column(r) + k;
      v[r][k] = from && column < me.valid ? from[me.channel + column] : 0.f;
    }
  }
  __device__ __forceinline__ float get(int r, int k) const { return v[r][k]; }
};
// 1 for a row of the tile in [from, until), else 0: a factor keeps the prologue free of branches.
__device__ __forceinline__ float inside(int r, int from, int until) {
  return Rows::row(r) >= from && Rows::row(r) < until ? 1.f : 0.f;
}
