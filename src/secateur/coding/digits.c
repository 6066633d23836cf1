/* Words apart into byte planes, and together again, in one pass: see digits.py, which is the reference.

   A plane without a lower half holds whole digits of sixteen bits. Called by digits.py on little-endian machines, with
   planes as long as there are words. */
#include <stdint.h>
#include <string.h>

enum { PIECE = 4096 }; /* words at a time: they stay in the cache */

static void join_digit(uint16_t *to, const uint8_t *upper, const uint8_t *lower, int64_t n, int exponent_apart) {
  if (!lower)
    memcpy(to, upper, (size_t)n * 2);
  else if (exponent_apart)
    for (int64_t i = 0; i < n; i++)
      to[i] = (uint16_t)(upper[i] << 7 | (lower[i] & 0x7F) | (lower[i] & 0x80) << 8);
  else
    for (int64_t i = 0; i < n; i++) to[i] = (uint16_t)(upper[i] << 8 | lower[i]);
}

/* Rotate bytes to the left: how floats of eight bits are kept. */
static void turn(uint8_t *to, const uint8_t *from, int64_t n, int bits) {
  if (bits == 1) /* a number that is known here takes a third of the time */
    for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)(from[i] << 1 | from[i] >> 7);
  else if (bits == 7)
    for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)(from[i] << 7 | from[i] >> 1);
  else
    memcpy(to, from, (size_t)n);
}

/* Count how often each byte occurs. */
void secateur_count(const uint8_t *plane, int64_t n, int64_t *counts) {
  uint32_t some[4][256] = {{0}}; /* several tables: two equal bytes in turn need not wait for each other */
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int k = 0; k < 4; k++) some[k][plane[i + k]]++;
  for (; i < n; i++) some[0][plane[i]]++;
  for (int k = 0; k < 256; k++) counts[k] = (int64_t)some[0][k] + some[1][k] + some[2][k] + some[3][k];
}

/* Rebuild `count` words of 1, 2, 4 or 8 bytes from their digits' planes, upper and lower half in turn. */
void secateur_join(void *out, const uint8_t *const *planes, int64_t count, int64_t width, int64_t floating) {
  uint16_t digit[4][PIECE];
  int digits = (int)(width / 2);
  if (width == 1) {
    turn(out, planes[0], count, floating ? 7 : 0);
    return;
  }
  for (int64_t start = 0; start < count; start += PIECE) {
    int64_t n = count - start < PIECE ? count - start : PIECE;
    for (int d = 0; d < digits; d++) {
      const uint8_t *upper = planes[2 * d], *lower = planes[2 * d + 1];
      uint16_t *to = width == 2 ? (uint16_t *)out + start : digit[d];
      join_digit(to, upper + (lower ? start : 2 * start), lower ? lower + start : lower, n, floating && !d);
    }
    if (width == 4) {
      uint32_t *to = (uint32_t *)out + start;
      for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)digit[0][i] << 16 | digit[1][i];
    } else if (width == 8) {
      uint64_t *to = (uint64_t *)out + start;
      for (int64_t i = 0; i < n; i++)
        to[i] = (uint64_t)digit[0][i] << 48 | (uint64_t)digit[1][i] << 32 | (uint64_t)digit[2][i] << 16 | digit[3][i];
    }
  }
}

static void split_digit(const uint16_t *from, uint8_t *upper, uint8_t *lower, int64_t n, int exponent_apart) {
  if (!lower)
    memcpy(upper, from, (size_t)n * 2);
  else if (exponent_apart)
    for (int64_t i = 0; i < n; i++) {
      upper[i] = (uint8_t)(from[i] >> 7);
      lower[i] = (uint8_t)((from[i] & 0x7F) | (from[i] >> 8 & 0x80));
    }
  else
    for (int64_t i = 0; i < n; i++) upper[i] = (uint8_t)(from[i] >> 8), lower[i] = (uint8_t)from[i];
}

/* The inverse of `secateur_join`. */
void secateur_split(const void *words, uint8_t *const *planes, int64_t count, int64_t width, int64_t floating) {
  uint16_t digit[PIECE];
  if (width == 1) {
    turn(planes[0], words, count, floating ? 1 : 0);
    return;
  }
  for (int64_t start = 0; start < count; start += PIECE) {
    int64_t n = count - start < PIECE ? count - start : PIECE;
    for (int d = 0; d < width / 2; d++) {
      int shift = 16 * ((int)(width / 2) - 1 - d);
      const uint16_t *from = digit;
      if (width == 2)
        from = (const uint16_t *)words + start;
      else if (width == 4)
        for (int64_t i = 0; i < n; i++) digit[i] = (uint16_t)(((const uint32_t *)words)[start + i] >> shift);
      else
        for (int64_t i = 0; i < n; i++) digit[i] = (uint16_t)(((const uint64_t *)words)[start + i] >> shift);
      uint8_t *upper = planes[2 * d], *lower = planes[2 * d + 1];
      split_digit(from, upper + (lower ? start : 2 * start), lower ? lower + start : lower, n, floating && !d);
    }
  }
}
