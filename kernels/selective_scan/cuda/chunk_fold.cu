// Chain what `chunk_ends` found: `starts` becomes what enters each chunk. `ends` and `sums` hold up to `most` pieces of
// a row, a power of two `pieces` of them to a chunk, of all chunks but the one that hands nothing on: the last of them,
// or `backwards` the first. One thread per (batch, channel, state).

// FOLD pieces are fetched together: one after the other they would be waited for. No __restrict__ on what is fetched:
// the compiler would move each fetch down to where it is used.

extern "C" __global__ void __launch_bounds__(NTH)
    chunk_fold(const float *ends, const float *sums, const float *__restrict__ A,
               const float *__restrict__ first, float *starts, i64 states, i64 most, i64 count,
               i64 pieces, i64 backwards, i64 length, i64 piece_steps, i64 stretch, i64 groups) {
  const i64 i = blockIdx.x * (i64)NTH + threadIdx.x, batch = blockIdx.y;
  if (i >= count) return;
  const float a = A[i] * LOG2E;
  float carry = first ? first[batch * count + i] : 0.f;
  const int log = __ffs((int)pieces) - 1, each = (int)pieces - 1, enters = backwards ? each : 0;
  i64 found = most;
  if (backwards) {
    const i64 row = batch * groups + i / (count / groups);
    const i64 begin = second_chunk(row, stretch, piece_steps * pieces);
    found = max(0ll, (length - begin + piece_steps - 1) / piece_steps);
  }
  const i64 chunks = ((most + each) >> log) + 1, entry = batch * most + (backwards ? found - 1 : 0);
  const int channels = (int)count / (int)states;
  const i64 apart = backwards ? -count : count, sums_apart = backwards ? -channels : channels;
  const float *end_at = ends + entry * count + i, *sum_at = sums + entry * channels + (int)i / (int)states;
  const int step = backwards ? -1 : 1;
  int piece = backwards ? (int)found + each : 0;
  float *start_at = starts + (batch * chunks + (piece >> log)) * count + i;
  *start_at = carry, start_at += apart;
  for (int left = (int)found; left > 0; left -= FOLD) {
    float s[FOLD], end[FOLD];
#pragma unroll
    for (int k = 0; k < FOLD; k++) {
      s[k] = end[k] = 0.f;
      if (k < left) s[k] = *sum_at, end[k] = *end_at;
      sum_at += sums_apart, end_at += apart;
    }
#pragma unroll
    for (int k = 0; k < FOLD; k++) {
      carry = s[k] == s[k] ? fmaf(ex2(a * s[k]), carry, end[k]) : end[k];  // beyond the last: as it was
      piece += step;
      if (k < left && (piece & each) == enters) *start_at = carry, start_at += apart;
    }
  }
}
