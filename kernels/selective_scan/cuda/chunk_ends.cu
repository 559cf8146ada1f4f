// What a chunk hands on.
//
// ADJOINT 0: the state at the end of the chunk that starts from zero, sum_t 2^(a s_t) d u B with
// s_t the sum of the steps after t; t runs backwards, so that a state is left as soon as 2^(a s_t)
// is below 2^-40 (unless EXACT). ADJOINT 1: what the chunk hands to the left, sum_t 2^(a s_t) dy C
// with s_t the sum of the steps up to t; t runs forwards.

// Adds a tile to the first 4 COUNT states of a thread, and its steps to s.
template <int COUNT>
__device__ __forceinline__ void add_tile(States sum, float *s, const States a, const Tile &size, const Tile &inflow,
                                         const float (*map)[NPAD], const Place &me) {
  float d[2][4], v[2][4], m[2][4];
  const auto time = [](int k) { return ADJOINT ? k : TB - 1 - k; };
  const auto need = [&](int k) {
    const int i = time(k);
    if (k % GROUP == 0) {
      load4(d[k / GROUP & 1], &size.v[i / GROUP][4 * me.cl]);
      load4(v[k / GROUP & 1], &inflow.v[i / GROUP][4 * me.cl]);
    }
    load4(m[k & 1], &map[i][4 * me.sq]);
  };
  need(0);
#pragma unroll
  for (int k = 0; k < TB; k++) {
    const int now = k & 1, group = k / GROUP & 1;
    if (k + 1 < TB) need(k + 1);
    EACH_CHANNEL(q) {
      const int at = time(k) % GROUP * NC + q;
      const float after = s[q] + d[group][at], weight = ADJOINT ? after : s[q];
      s[q] = after;
#pragma unroll
      for (int j = 0; j < COUNT; j++) sum[q][j] = fmaf(ex2(weight * a[q][j]), v[group][at] * m[now][j], sum[q][j]);
    }
  }
}
// How many of a thread's states, up to the last one that some lane has not forgotten after steps of s.
__device__ __forceinline__ int count_alive(const States a, const float *s, const Place &me) {
  int count = 0;
  EACH4(j) {
    float slowest = -1e30f;
    EACH_CHANNEL(k) if (NC * me.cl + k < me.valid && state(me, j) < N) slowest = fmaxf(slowest, a[k][j] * s[k]);
    if (EXACT || !SOFTPLUS || __any_sync(~0u, slowest > FORGOTTEN)) count = j + 1;
  }
  return count;
}

// A warp's share of shared memory.
struct Work {
  Tile size, inflow;  // d; d u, or dy
  Vector shift;
};

extern "C" __global__ void __launch_bounds__(NTH, BLOCKS) chunk_ends(ARGUMENTS) {
  extern __shared__ __align__(16) float memory[];
  float(*maps_at)[NPAD] = (float(*)[NPAD])memory;  // TILES tiles and TILES more
  const Place me = place(blockIdx.z, columns, per_group);
  Work &work = ((Work *)(memory + 2 * TILES * TB * NPAD))[me.warp];
  Tile &size = work.size, &inflow = work.inflow;
  Vector &shift = work.shift;
  shift.load(bias, me);
  __syncwarp();
  const i64 batch = blockIdx.y;
  const i64 first_begin = ADJOINT ? second_chunk(batch * groups + me.group, stretch, chunk * pieces) : 0;
  const i64 begin = first_begin + blockIdx.x * chunk, end = min(begin + chunk, length);
  if (begin >= end) return;  // another row has more chunks
  const int steps = (int)(end - begin), tiles = (steps + TB - 1) / TB;
  const auto index = [&](int tile) { return ADJOINT ? tile : tiles - 1 - tile; };  // in time

  States a, sum;
  load_rates(a, A, me);
  EACH_CHANNEL(k) EACH4(j) sum[k][j] = 0.f;
  const T *map = ADJOINT ? C + batch * Cb + me.group * Cg : B + batch * Bb + me.group * Bg;
  const i64 mt = ADJOINT ? Ct : Bt, mn = ADJOINT ? Cn : Bn;
  // x, or dy and z: of this lane, at the tile that is fetched next.
  const i64 t0 = begin + index(0) * TB, vt = ADJOINT ? dyt : xt, walk = ADJOINT ? TB : -TB;
  const T *pd = dt + batch * dtb + me.channel + t0 * dtt + Rows::start(dtt);
  const T *pv = (ADJOINT ? dy + batch * dyb : x + batch * xb) + me.channel + t0 * vt + Rows::start(vt);
  const T *pz = ADJOINT && HAS_Z ? z + batch * zb + me.channel + t0 * zt + Rows::start(zt) : z;

  float s[NC] = {};
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
    float fastest[NC];
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
        EACH_CHANNEL(q) EACH4(j) sum[q][j] = fmaf(ex2(a[q][j] * s[q]), edge[q][j], sum[q][j]);
      }
#endif
    }
  }
  const i64 at = (batch * chunks + blockIdx.x) * channels;
  store_states(ends + at * N, sum, me);
  // NaN: nothing of what enters the chunk leaves it.
  EACH_CHANNEL(q) if (me.sq == 0 && NC * me.cl + q < me.valid)
    sums[at + me.channel + NC * me.cl + q] = cut ? __int_as_float(0x7fffffff) : s[q];
}
