// The forward of a chunk from the state that enters it.

// With one channel per thread the reads of B and C from shared memory are what takes longest, and registers are
// free: B and C stay narrow, what depends on the channel alone is held.
#define NARROW_MAPS (NC == 1 && DTYPE != 0)
#define MAP_ROW (NARROW_MAPS ? NPAD : ROW)  // floats that a step of B and C takes
#if TB > CK
#define BETWEEN_MARKS TB  // at the start of tiles; others lie inside of them
#else
#define BETWEEN_MARKS CK
#endif

// A warp's share of shared memory.
struct Work {
  Tile size, inflow;  // d; d u, then y
#if NC > 1
  Vector shift, through;
#endif
};

// 4 of B and 4 of C, of a step.
__device__ __forceinline__ void load_maps(float *b, float *m, const float *row, const Place &me) {
#if NARROW_MAPS
  const uint4 all = *(const uint4 *)(row + 4 * me.sq);
  b[0] = lower(all.x), b[1] = upper(all.x), b[2] = lower(all.y), b[3] = upper(all.y);
  m[0] = lower(all.z), m[1] = upper(all.z), m[2] = lower(all.w), m[3] = upper(all.w);
#else
  load4(b, row + 4 * me.sq), load4(m, row + NPAD + 4 * me.sq);
#endif
}

extern "C" __global__ void __launch_bounds__(NTH, BLOCKS) forward(ARGUMENTS) {
  extern __shared__ __align__(16) float memory[];
  float(*maps_at)[MAP_ROW] = (float(*)[MAP_ROW])memory;  // TILES tiles and TILES more
  const Place me = place(blockIdx.z, columns, per_group);
  Work &work = ((Work *)(memory + 2 * TILES * TB * MAP_ROW))[me.warp];
  Tile &size = work.size, &inflow = work.inflow;
#if NC > 1
  Vector &shift = work.shift, &through = work.through;
#else
  Held shift, through;
#endif
  shift.load(bias, me), through.load(skip, me);
  __syncwarp();
  const i64 batch = blockIdx.y, c = blockIdx.x;
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
  // Marks lie at whole multiples of CK steps, chunks begin at those of TB.
  const i64 index = (begin + CK - 1) / CK;
  int until_mark = (int)(index * CK - begin);
  float4 *next_mark = mark(marks, batch, index, per_group, groups, me, marks_b);
  const i64 marks_apart = mark(marks, batch, index + 1, per_group, groups, me, marks_b) - next_mark;
  const bool marked = marks && has_marks(per_group, me);
#if PACKED
  i64 sequence = before[begin / FLAGGED];
#endif

  Maps<2, TILES * TB> maps;
  Rows raw, u, gate, next_u, next_gate;
  int rows = (int)(end - begin);  // from the tile on
  maps.load(pB, Bt, Bn, pC, Ct, Cn, rows);
  raw.load(pd, dtt, rows, me.valid);
  next_u.load(px, xt, rows, me.valid);
  if (HAS_Z) next_gate.load(pz, zt, rows, me.valid);
  for (int tile = 0; rows > 0; tile++, rows -= TB, until_mark -= TB) {
    const int inside_maps = tile % TILES;
    float(*here)[MAP_ROW] = maps_at + tile % (2 * TILES) * TB;
    if (inside_maps == 0) {
#if NARROW_MAPS
      maps.store_narrow((T *)here);
#else
      maps.store((float *)here);
#endif
    }
    if (until_mark == 0) {
      if (marked) store_mark(next_mark, h, 32);
      next_mark += marks_apart, until_mark = BETWEEN_MARKS;
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
    const unsigned char *flagged = resets + (begin + tile * TB) / FLAGGED;
    unsigned flags = 0;
#pragma unroll
    for (int k = 0; k < TB / FLAGGED; k++)
      if (k * FLAGGED < rows) flags |= (unsigned)flagged[k] << k * FLAGGED;
#endif
    // What step i + 1 needs is fetched before step i is computed, and the sums of a group of steps are
    // finished after the step behind it: a warp waits neither for shared memory nor for shuffles.
    float d[2][4], in[2][4], b[2][4], m[2][4], out[2][4];
    const auto fetch = [&](int i) {
      if (i % GROUP == 0) {
        load4(d[i / GROUP & 1], &size.v[i / GROUP][4 * me.cl]);
        load4(in[i / GROUP & 1], &inflow.v[i / GROUP][4 * me.cl]);
      }
      load_maps(b[i & 1], m[i & 1], here[i], me);
    };
    const auto finish = [&](int group) {
      sum4<1, SL>(out[group & 1]);
#pragma unroll
      for (int q = 0; q < OWN_SUMS; q++)
        if (me.sq < 4) inflow.v[group][4 * me.cl + owned<1, SL>() + q] = out[group & 1][q];
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
#if TB > CK
      if (i > 0 && i % CK == 0) {
        if (marked && i < rows) store_mark(next_mark, h, 32);
        next_mark += marks_apart;
      }
#endif
      const int now = i & 1, group = i / GROUP;
      if (i + 1 < TB) fetch(i + 1);
      EACH_CHANNEL(q) {
        const int k = i % GROUP * NC + q;
        const float step = d[group & 1][k], inflow = in[group & 1][k];
        float &sum = out[group & 1][k];
        sum = 0.f;
        EACH4(j) {
          h[q][j] = fmaf(ex2(step * a[q][j]), h[q][j], inflow * b[now][j]);
          sum = fmaf(h[q][j], m[now][j], sum);
        }
      }
      if (i > 0 && i % GROUP == 0) finish(group - 1);
    }
    finish(TB / GROUP - 1);
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
