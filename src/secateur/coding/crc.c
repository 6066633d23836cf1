/* The CRC-32 of zlib, sixteen or sixty-four bytes at a time by multiplication without carries: see crc.py.

   Blocks are polynomials over GF(2). A block so many bits before another one is brought to its place by two products
   with powers of x modulo the checksum's polynomial; what is left at the end, sixteen bytes, goes bit by bit. (V. Gopal
   and others, Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009.) */
#include <stdint.h>

#if defined(__x86_64__) && defined(__PCLMUL__) && defined(__SSE4_1__)
#include <immintrin.h>

/* x^(d + 32) and x^(d - 32) modulo the polynomial, bits mirrored, for the distance d in bits. */
#define BY_128 0xccaa009e, 0x1751997d0
#define BY_512 0x1c6e41596, 0x154442bd4
#define BY_2048 0x1322d1430, 0x11542778a

static uint32_t by_bit(uint32_t crc, const uint8_t *from, int64_t n) {
  for (; n > 0; n--) {
    crc ^= *from++;
    for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1)));
  }
  return crc;
}

static __m128i near(__m128i block, __m128i powers, __m128i next) {
  __m128i low = _mm_clmulepi64_si128(block, powers, 0x00), high = _mm_clmulepi64_si128(block, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static __m128i at(const uint8_t *from) { return _mm_loadu_si128((const __m128i *)from); }

#if defined(__VPCLMULQDQ__) && defined(__AVX512F__)
static __m512i wide(__m512i block, __m512i powers, __m512i next) {
  __m512i low = _mm512_clmulepi64_epi128(block, powers, 0x00), high = _mm512_clmulepi64_epi128(block, powers, 0x11);
  return _mm512_xor_si512(_mm512_xor_si512(low, high), next);
}
#endif

/* The checksum after `n` more bytes; `crc` is inverted at both ends, as zlib does. */
uint32_t secateur_crc(uint32_t crc, const uint8_t *from, int64_t n) {
  uint8_t last[16];
  if (n < 256) return ~by_bit(~crc, from, n);
  __m128i by_128 = _mm_set_epi64x(BY_128), x[4];
#if defined(__VPCLMULQDQ__) && defined(__AVX512F__)
  __m512i by_512 = _mm512_broadcast_i32x4(_mm_set_epi64x(BY_512)), y[4];
  __m512i by_2048 = _mm512_broadcast_i32x4(_mm_set_epi64x(BY_2048));
  for (int k = 0; k < 4; k++) y[k] = _mm512_loadu_si512(from + 64 * k);
  y[0] = _mm512_xor_si512(y[0], _mm512_inserti32x4(_mm512_setzero_si512(), _mm_cvtsi32_si128((int)~crc), 0));
  for (from += 256, n -= 256; n >= 256; from += 256, n -= 256)
    for (int k = 0; k < 4; k++) y[k] = wide(y[k], by_2048, _mm512_loadu_si512(from + 64 * k));
  for (int k = 1; k < 4; k++) y[k] = wide(y[k - 1], by_512, y[k]);
  x[0] = _mm512_extracti32x4_epi32(y[3], 0), x[1] = _mm512_extracti32x4_epi32(y[3], 1);
  x[2] = _mm512_extracti32x4_epi32(y[3], 2), x[3] = _mm512_extracti32x4_epi32(y[3], 3);
#else
  __m128i by_512 = _mm_set_epi64x(BY_512);
  for (int k = 0; k < 4; k++) x[k] = at(from + 16 * k);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)~crc));
  for (from += 64, n -= 64; n >= 64; from += 64, n -= 64)
    for (int k = 0; k < 4; k++) x[k] = near(x[k], by_512, at(from + 16 * k));
#endif
  for (int k = 1; k < 4; k++) x[k] = near(x[k - 1], by_128, x[k]);
  for (; n >= 16; from += 16, n -= 16) x[3] = near(x[3], by_128, at(from));
  _mm_storeu_si128((__m128i *)last, x[3]);
  return ~by_bit(by_bit(0, last, 16), from, n);
}

int64_t secateur_has_crc(void) { return 1; }

#else

uint32_t secateur_crc(uint32_t crc, const uint8_t *from, int64_t n) { return (void)from, (void)n, crc; }

int64_t secateur_has_crc(void) { return 0; }

#endif
