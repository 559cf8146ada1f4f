// Chain what `chunk_ends` found: `starts` becomes what enters each chunk, of which `ends` and `sums`
// hold `pieces` each (the last chunk maybe fewer). One thread per (batch, channel, state).

#define FOLD 16

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
