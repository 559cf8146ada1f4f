// The backward of a chunk from its marks and the adjoint that enters it.

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

// Steps of B and C that a block brings in at once, up to 16 values per thread.
#define MAP_ROWS (HELD * ROW <= 16 * NTH ? HELD : TB)
#define SEGMENT (CK / TB)  // tiles between two marks
#define AHEAD 3  // steps before they are used, states that wait in shared memory are fetched

// A warp's share of shared memory.
struct Work {
  Tile sizes[SIZES + 1];    // d of the first tiles between two marks and of any other, then its gradient
  Tile value, grad, slope;  // u, then dx; dy; dz
#if OUTPUT
  Tile output;  // silu(z), then y
#endif
  Staged step, input, grad_y, gate;
  alignas(16) float sums[2 * GATHER][TB][ROW];  // dB and dC of these tiles and of those before
  Vector shift;
#if EARLY
  float4 early[EARLY][4][32];  // the states before its first steps, until others have left the registers
#endif
};

// 2^v on the multiply-add units, relative error 1.9e-7, for -126 <= v <= 127 and the nearer of these beyond.
// Adding 1.5 2^23 rounds v to an integer in the lowest bits, which then go to the exponent of the polynomial.
__device__ __forceinline__ float ex2_fma(float v) {
  v = fminf(fmaxf(v, -126.f), 127.f);
  const float t = v + 12582912.f, f = v - (t - 12582912.f);
  float p = 1.32647272e-3f;
  p = fmaf(p, f, 9.67151264e-3f);
  p = fmaf(p, f, 5.55073374e-2f);
  p = fmaf(p, f, 2.40222421e-1f);
  p = fmaf(p, f, 6.93146978e-1f);
  p = fmaf(p, f, 1.f);
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(t) << 23));
}

// d, unless it is known, and u or d u of a tile of the warp.
__device__ __forceinline__ void prepare(Work &work, Tile &size, i64 steps, bool inflow, bool known = false) {
  await_fetch();
  const Rows u = work.input.read();
  float v[VEC];
  if (known) {
    EACH_ROUND(r) {
      EACH_NEIGHBOUR(k) v[k] = u.get(r, k);
      work.value.put(r, v);
    }
    return;
  }
  const Rows raw = work.step.read();
  EACH_ROUND(r) {
    const float there = inside(r, 0, steps);
    float d[VEC];
    EACH_NEIGHBOUR(k) {
      d[k] = there * step_size(raw.get(r, k) + work.shift.get(r, k));
      v[k] = inflow ? d[k] * u.get(r, k) : u.get(r, k);
    }
    size.put(r, d), work.value.put(r, v);
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

// Blocks take (channels, chunk) by turns, so that the scratch is as large as the device, not the problem. A chunk is
// a piece of all rows laid end to end, of one row or of several.
extern "C" __global__ void __launch_bounds__(NTH, BLOCKS) backward(ARGUMENTS) {
  extern __shared__ __align__(16) float memory[];
  float *maps_at = memory;  // B and C of HELD steps
  Work *works = (Work *)(memory + HELD * ROW);
  Work &work = works[threadIdx.x >> 5];
  float4 *inner = scratch + ((i64)blockIdx.x * NWARP + (threadIdx.x >> 5)) * (SEGMENT - 2) * 128 + (threadIdx.x & 31);

  const i64 total = batches * groups * stretch;
  i64 item = blockIdx.x, at = item / columns * chunk;
  while (at < total) {
    const i64 row = at / stretch, begin = at % stretch, until_chunk = min(at / chunk * chunk + chunk, total);
    const i64 c = item / columns - row * stretch / chunk, end = min(begin + until_chunk - at, length);
    const i64 batch = row / groups, column = row % groups * columns + item % columns;
    const Place me = place(column, columns, per_group);

    States a, carry, grad_a;
    load_rates(a, A, me);
    load_states(carry, starts ? starts + (batch * chunks + c) * channels * N : starts, me);
    __syncthreads();
    work.shift.load(bias, me);
    __syncwarp();
    EACH4(q) EACH4(j) grad_a[q][j] = 0.f;
    const int mine = 4 * me.cl + owned<1, SL>();  // the first channel whose sums over states end up here
    float through[OWN_SUMS], grad_skip[OWN_SUMS], grad_bias[OWN_SUMS];
#pragma unroll
    for (int q = 0; q < OWN_SUMS; q++) {
      through[q] = skip && mine + q < me.valid ? skip[me.channel + mine + q] : 0.f;
      grad_skip[q] = grad_bias[q] = 0.f;
    }
    const T *px = x + batch * xb + me.channel + Rows::start(xt);
    const T *pd = dt + batch * dtb + me.channel + Rows::start(dtt);
    const T *pz = z + batch * zb + me.channel + Rows::start(zt);
    const T *pg = dy + batch * dyb + me.channel + Rows::start(dyt);
    const i64 out = batch * dxb + me.channel + Rows::start(dxt);  // dx and ddt lie alike
#if DZ_APART
    const i64 out_of_gate = batch * dzb + me.channel + Rows::start(dzt);
#endif

    const auto fetch = [&](i64 t, bool all, bool known = false) {
      if (!known) work.step.fetch(pd + t * dtt, dtt, end - t, me.valid);
      work.input.fetch(px + t * xt, xt, end - t, me.valid);
      if (all) work.grad_y.fetch(pg + t * dyt, dyt, end - t, me.valid);
      if (all && HAS_Z) work.gate.fetch(pz + t * zt, zt, end - t, me.valid);
      end_fetch();
    };
    const i64 latest = begin + (end - begin - 1) / CK * CK;  // where the last segment starts
    fetch(latest, end - latest <= TB);
    States h;
    EACH4(q) EACH4(j) h[q][j] = 0.f;
    const auto remember = [&](i64 t) {
      if (me.valid > 0) load_mark(h, mark(marks, batch, t / CK, per_group, groups, me, marks_b), 32);
    };
    remember(latest);

    for (i64 t0 = begin + (end - begin - 1) / HELD * HELD; t0 >= begin; t0 -= HELD) {
      const int held = (int)min((i64)(HELD / TB), (end - t0 + TB - 1) / TB);  // tiles
      for (int row = 0; row < held * TB; row += MAP_ROWS) {
        Maps<2, MAP_ROWS> maps;
        maps.load(B + batch * Bb + (t0 + row) * Bt + me.group * Bg, Bt, Bn,
                  C + batch * Cb + (t0 + row) * Ct + me.group * Cg, Ct, Cn, end - t0 - row);
        maps.store(maps_at + row * ROW);
      }
      __syncthreads();

      // Segments in reverse; h is the state that enters this one.
#pragma unroll 1
      for (int first = (held - 1) / SEGMENT * SEGMENT; first >= 0; first -= SEGMENT) {
        const int until = min(first + SEGMENT, held);
        const auto size_of = [&](int tile) -> Tile & { return work.sizes[SIZES ? min(tile - first, SIZES) : 0]; };
        const auto known = [&](int tile) { return SIZES && tile < until - 1 && tile - first < SIZES; };  // in phase 2
        // Phase 1: the state before every tile but the first.
#pragma unroll 1
        for (int tile = first; tile < until - 1; tile++) {
          const i64 t = t0 + tile * TB;
          __syncwarp();
          Tile &size = size_of(tile);
          prepare(work, size, TB, true);  // all but a chunk's last tile are whole
          __syncwarp();
          fetch(t + TB, tile == until - 2);
#if PACKED
          const int flags = resets[t / TB];
          i64 sequence = before[t / TB];
#endif
          float d[2][4], in[2][4], b[2][4];
          const auto need = [&](int i) {
            load4(d[i & 1], &size.v[i][4 * me.cl]);
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
            EACH4(q) EACH4(j) {
              // Here exponentials are waited for, elsewhere instructions: 2 of 16 go another way.
              const float exponent = d[now][q] * a[q][j], decay = q < 2 && j == 3 ? ex2_fma(exponent) : ex2(exponent);
              h[q][j] = fmaf(decay, h[q][j], in[now][q] * b[now][j]);
            }
          }
          if (tile < until - 2) store_scratch(inner + (tile - first) * 128, h);
        }

        // Phase 2: tiles in reverse; their states in registers, then the adjoint.
#pragma unroll 1
        for (int tile = until - 1; tile >= first; tile--) {
          const i64 t = t0 + tile * TB, steps = end - t;
          __syncwarp();
          Tile &size = size_of(tile);
          prepare(work, size, steps, false, known(tile));
          prepare_gradients(work);
          __syncwarp();
          const bool inside = tile > first;
          if (t > begin) fetch(inside ? t - TB : t - CK, inside || CK == TB, inside && known(tile - 1));
          const float *rows = maps_at + tile * TB * ROW + 4 * me.sq;
          float(*sums)[ROW] = work.sums[tile % (2 * GATHER)];
#if PACKED
          const int flags = resets[t / TB];
          i64 sequence = before[t / TB];
#endif
          // As in the forward: fetched a step before they are used, sums finished a step after.
          float d[2][4], u[2][4], g[2][4], b[2][4], m[2][4];
          const auto need = [&](int i, bool maps_of_y) {
            load4(d[i & 1], &size.v[i][4 * me.cl]);
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
                if (me.cl < 4) sums[i][NPAD + 4 * me.sq + owned<SL, CL>() + j] = grad_C[i & 1][j];
              if (HAS_Z || OUTPUT) {
                sum4<1, SL>(y_core[i & 1]);
#pragma unroll
                for (int q = 0; q < OWN_SUMS; q++) {
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
#if EARLY
              if (i < EARLY) store_mark(&work.early[i][0][me.lane], h, 32);
#endif
              EACH4(q) {
                const float in = d[now][q] * u[now][q];
                EACH4(j) {
                  if (i >= EARLY) past[i][q][j] = h[q][j];
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
                if (me.cl < 4) sums[i][4 * me.sq + owned<SL, CL>() + j] = grad_B[i & 1][j];
              sum4<1, SL>(by_decay[i & 1]);
              sum4<1, SL>(by_inflow[i & 1]);
              if (SL == 1) __syncwarp();
#pragma unroll
              for (int q = 0; q < OWN_SUMS; q++) {
                const float step = size.v[i][mine + q], value = work.value.v[i][mine + q];
                const float grad = work.grad.v[i][mine + q], inflow = by_inflow[i & 1][q];
                const float slope = fmaf(by_decay[i & 1][q], LN2, inflow * value) * step_slope(step);
                if (SL > 4) __syncwarp();
                if (me.sq < 4) {
                  size.v[i][mine + q] = slope;
                  work.value.v[i][mine + q] = fmaf(inflow, step, through[q] * grad);
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
#if EARLY
              const int early = i - AHEAD;
              if (early >= 0 && early < EARLY) load_mark(past[early], &work.early[early][0][me.lane], 32);
#endif
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
                if (tile > first + 1) load_scratch(h, inner + (tile - first - 2) * 128);
                if (tile <= first + 1 && t > begin) remember(t - TB);
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
              EACH_ROUND(r) result.set(r, tile.at(r, 0));
              result.store(to, stride, steps, me.valid);
            };
            write(work.value, dx + out + t * dxt, dxt);
            write(size, ddt + out + t * dxt, dxt);
#if DZ_APART
            write(work.slope, dz + out_of_gate + t * dzt, dzt);
#else
            if (HAS_Z) write(work.slope, dz + out + t * dxt, dxt);
#endif
#if OUTPUT == 2
            write(work.output, y + out_of_gate + t * dzt, dzt);
#elif OUTPUT
            write(work.output, y + out + t * dxt, dxt);
#endif
          }
          if (tile % GATHER == 0) {
            __syncthreads();
            float *to = dmaps + ((column * batches + batch) * length + t) * ROW;
            for (int k = 4 * threadIdx.x; k < min((i64)GATHER * TB, end - t) * ROW; k += 4 * NTH) {
              const int from = (tile + k / (TB * ROW)) % (2 * GATHER), row = k / ROW % TB;
              float v[4] = {}, of_warp[4];
#pragma unroll
              for (int w = 0; w < NWARP; w++) {
                load4(of_warp, &works[w].sums[from][row][k % ROW]);
                EACH4(j) v[j] += of_warp[j];
              }
              *(float4 *)(to + k) = make_float4(v[0], v[1], v[2], v[3]);
            }
          }
        }
      }
    }
    // Sums over the chunk: dA (D, N), then of the skip connection (D), then of the bias (D).
    float *sums_at = by_chunk + (batch * chunks + c) * channels * (N + 2);
    store_states(sums_at, grad_a, me);
#pragma unroll
    for (int q = 0; q < OWN_SUMS; q++)
      if (me.sq < 4 && mine + q < me.valid) {
        sums_at[channels * N + me.channel + mine + q] = grad_skip[q];
        sums_at[channels * (N + 1) + me.channel + mine + q] = grad_bias[q];
      }
    if (begin == 0) store_states(handed + batch * channels * N, carry, me);
    at += stretch - begin;
    if (at >= until_chunk) item += gridDim.x, at = item / columns * chunk;
  }
}
