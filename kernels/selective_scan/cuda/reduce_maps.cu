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
