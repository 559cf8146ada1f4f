// The forward of a chunk from the state that enters it.

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
