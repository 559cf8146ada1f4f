// A tile of `chunk_ends` by tensor cores, where the decays allow it.

// Whether it may be added that way.
#define SERIES (SL == 4 && SOFTPLUS && !EXACT)

#if SERIES
// The bits of v that tf32 keeps; what is left is a float exactly.
__device__ __forceinline__ float leading(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }
// sum (16, 8) += left (16, 8) right (8, 8) on tensor cores, in tf32.
__device__ __forceinline__ void multiply(float *sum, const float *left, float right0, float right1) {
  const unsigned *l = (const unsigned *)left;
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(l[0]), "r"(l[1]), "r"(l[2]), "r"(l[3]), "r"(__float_as_uint(right0)), "r"(__float_as_uint(right1)));
}

// For a tile in which no state that is still alive decays much: around the middle of the tile,
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
// What a thread holds of a tile: its channels at steps 2 sq and 2 sq + 1 of the walk.
struct Steps {
  float after[2][NC];  // e_t
  float total[NC];     // of all steps of the tile
  __device__ __forceinline__ static int row(const Place &me, int k) { return ADJOINT ? 2 * me.sq + k : TB - 1 - 2 * me.sq - k; }
  // A tile's numbers of those two steps.
  __device__ __forceinline__ static void pick(float (*v)[NC], const Tile &tile, const Place &me) {
#if NC == 4
    load4(v[0], &tile.v[row(me, 0)][4 * me.cl]), load4(v[1], &tile.v[row(me, 1)][4 * me.cl]);
#else
    float both[4];  // of one group
    load4(both, &tile.v[row(me, 0) / GROUP][4 * me.cl]);
    EACH_CHANNEL(c) v[0][c] = both[ADJOINT ? c : NC + c], v[1][c] = both[ADJOINT ? NC + c : c];
#endif
  }
  __device__ __forceinline__ void load(const Tile &size, const Place &me) {
    float d[2][NC];
    pick(d, size, me);
    EACH_CHANNEL(c) {
      const float mine = d[0][c] + d[1][c], next = __shfl_xor_sync(~0u, mine, 1), pair = mine + next;
      const float others = __shfl_xor_sync(~0u, pair, 2);
      total[c] = pair + others;
      const float start = (me.sq & 1 ? next : 0.f) + (me.sq & 2 ? others : 0.f) - 0.5f * total[c];
      after[0][c] = (ADJOINT ? start + d[0][c] : start) * LN2;
      after[1][c] = (ADJOINT ? start + mine : start + d[0][c]) * LN2;
    }
  }
};
// All 16 states; a thread's share of the products is what it holds of them (SL is 4).
template <int DEGREE>
__device__ __forceinline__ void add_series(States sum, const float *s, const States a, const Steps &at, const Tile &inflow,
                                           const float (*map)[NPAD], const Place &me) {
  const int split = DEGREE == 3 ? 2 : DEGREE == 5 ? 3 : 5;  // powers from here on are small enough in one part
  float m[2][2], v[2][NC];
  Steps::pick(v, inflow, me);
#pragma unroll
  for (int k = 0; k < 2; k++)
#pragma unroll
    for (int p = 0; p < 2; p++) m[p][k] = map[Steps::row(me, k)][me.cl / 2 * 4 + 2 * p + me.cl % 2];
#pragma unroll
  for (int half = 0; half < NC / 2; half++) {  // channels 2 half and 2 half + 1
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
      const float weight = ex2(a[c][j] * fmaf(0.5f, at.total[c], s[c]));
      if (weight > 0.f) sum[c][j] = fmaf(weight, all[p][i], sum[c][j]);  // what is long forgotten may be infinite
    }
  }
}
// The fastest rate of each channel among the states that are not forgotten; not 0, so that no power of a step
// overflows where all are.
__device__ __forceinline__ void fastest_alive(float *fastest, const States a, const float *s) {
  EACH_CHANNEL(c) {
    fastest[c] = 1e-4f;
    EACH4(j) if (a[c][j] * s[c] > FORGOTTEN) fastest[c] = fmaxf(fastest[c], fabsf(a[c][j]));
  }
}
// Adds the tile if a series serves; says whether it did.
__device__ __forceinline__ bool try_series(States sum, float *s, const States a, const float *fastest, const Tile &size,
                                           const Tile &inflow, const float (*map)[NPAD], const Place &me) {
  Steps at;
  at.load(size, me);
  float most = 0.f;
  EACH_CHANNEL(c) most = fmaxf(most, fastest[c] * at.total[c]);
  // As unsigned numbers floats that are not negative keep their order; NaN is the largest.
  most = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(most))) * (0.5f * LN2);
  if (!(most <= reach<7>())) return false;
  if (most <= reach<3>()) add_series<3>(sum, s, a, at, inflow, map, me);
  else if (most <= reach<5>()) add_series<5>(sum, s, a, at, inflow, map, me);
  else add_series<7>(sum, s, a, at, inflow, map, me);
  EACH_CHANNEL(c) s[c] += at.total[c];
  return true;
}
#endif
