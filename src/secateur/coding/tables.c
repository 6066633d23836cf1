/* Bytes coded by one table of frequencies: see static.py, which is the reference and says what is written.

   Called by static.py for planes of bytes. Where a stream is not as it should be, the decoder gives 0 and static.py reads
   it again, so that there is one place that says what is wrong. */
#include <stdint.h>
#include <string.h>

#define TOTAL (INT64_C(1) << 24)
#define LEAST_RANGE (UINT64_C(1) << 32)
#define LARGEST (INT64_C(1) << 32) /* a count of the table */
enum { SYMBOLS = 256, FINEST = 4096 };

void secateur_count(const uint8_t *plane, int64_t n, int64_t *counts); /* digits.c */

/* The parts of TOTAL up to each of `size` symbols: `edges[0]` is 0, `edges[size]` TOTAL. */
static void edges_of(const int64_t *counts, int64_t size, int64_t *edges) {
  int64_t total = 0, given = 0, most = 0, room = TOTAL - size;
  for (int64_t k = 0; k < size; k++) total += counts[k];
  for (int64_t k = 0; k < size; k++) {
    edges[k + 1] = counts[k] * room / total;
    given += edges[k + 1];
    if (counts[k] > counts[most]) most = k;
  }
  edges[most + 1] += room - given;
  edges[0] = 0;
  for (int64_t k = 0; k < size; k++) edges[k + 1] += edges[k] + 1;
}

static uint8_t *put_number(uint8_t *to, int64_t value) {
  for (; value > 127; value >>= 7) *to++ = (uint8_t)(value & 127) | 128;
  *to++ = (uint8_t)value;
  return to;
}

static uint8_t *put_word(uint8_t *to, uint64_t low) {
  for (int shift = 56; shift >= 32; shift -= 8) *to++ = (uint8_t)(low >> shift);
  return to;
}

static void carry(uint8_t *last) { /* there is a byte that is not full: the number written is below one */
  while (*last == 255) *last-- = 0;
  ++*last;
}

/* Write the table and the stream of `n` bytes, n > 0, to `out`, which has room for 2 n + 1024; gives their length. */
int64_t secateur_table_encode(const uint8_t *plane, int64_t n, uint8_t *out) {
  int64_t all[SYMBOLS], edges[SYMBOLS + 1];
  int first = 0, last = SYMBOLS - 1;
  secateur_count(plane, n, all);
  if (n > FINEST)
    for (int k = 0; k < SYMBOLS; k++)
      if (all[k]) all[k] = all[k] * FINEST / n > 1 ? all[k] * FINEST / n : 1;
  while (!all[first]) first++;
  while (!all[last]) last--;
  uint8_t *to = put_number(out, first);
  to = put_number(to, last - first);
  if (first == last) { /* the last byte is never zero */
    *to++ = 1;
    return to - out;
  }
  for (int k = first; k <= last; k++) to = put_number(to, all[k]);
  edges_of(all + first, last - first + 1, edges);
  uint8_t *begin = to;
  uint64_t low = 0, span = UINT64_MAX;
  for (int64_t i = 0; i < n; i++) {
    const int64_t *edge = edges + (plane[i] - first);
    uint64_t scale = span >> 24, moved = low + scale * (uint64_t)edge[0];
    if (moved < low) carry(to - 1);
    low = moved;
    span = scale * (uint64_t)(edge[1] - edge[0]);
    if (span < LEAST_RANGE) {
      to = put_word(to, low);
      low <<= 32;
      span <<= 32;
    }
  }
  uint64_t point = low + UINT32_MAX;
  if (point < low) carry(to - 1);
  to = put_word(to, point);
  while (to > begin && !to[-1]) to--;
  return to - out;
}

typedef struct {
  const uint8_t *at, *end;
} Bytes;

static int64_t number(Bytes *from, int64_t most) { /* -1 where there is none that is allowed */
  uint64_t value = 0;
  for (int shift = 0; shift < 63; shift += 7) {
    if (from->at == from->end) return -1;
    uint8_t byte = *from->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return (!byte && shift) || value > (uint64_t)most ? -1 : (int64_t)value;
  }
  return -1;
}

static uint64_t word(Bytes *from) { /* zeros follow the end */
  uint64_t value = 0;
  for (int k = 0; k < 4; k++) value = value << 8 | (from->at < from->end ? *from->at++ : 0);
  return value;
}

/* Read `n` bytes, n > 0; 1 where the data is exactly their table and stream. */
int64_t secateur_table_decode(const uint8_t *data, int64_t length, uint8_t *plane, int64_t n) {
  Bytes from = {data, data + length};
  int64_t counts[SYMBOLS], edges[SYMBOLS + 1], total = 0;
  int64_t first = number(&from, SYMBOLS - 1);
  int64_t size = first < 0 ? 0 : number(&from, SYMBOLS - 1 - first) + 1;
  if (!size) return 0;
  if (size == 1) {
    memset(plane, (int)first, (size_t)n);
    return from.end - from.at == 1 && *from.at == 1;
  }
  for (int64_t k = 0; k < size; k++) {
    if ((counts[k] = number(&from, LARGEST)) < 0) return 0;
    total += counts[k];
  }
  if (!counts[0] || !counts[size - 1] || total > INT64_C(1) << 38) return 0;
  edges_of(counts, size, edges);
  uint8_t near[SYMBOLS]; /* the symbol at each 256th of TOTAL: the first to look at */
  for (int64_t k = 0, symbol = 0; k < SYMBOLS; k++) {
    while (edges[symbol + 1] <= k << 16) symbol++;
    near[k] = (uint8_t)symbol;
  }
  uint64_t low = 0, span = UINT64_MAX, point = word(&from) << 32;
  point |= word(&from);
  for (int64_t i = 0; i < n; i++) {
    uint64_t scale = span >> 24, place = (point - low) / scale;
    if (place >= (uint64_t)TOTAL) return 0;
    int64_t symbol = near[place >> 16];
    while ((uint64_t)edges[symbol + 1] <= place) symbol++;
    plane[i] = (uint8_t)(first + symbol);
    low += scale * (uint64_t)edges[symbol];
    span = scale * (uint64_t)(edges[symbol + 1] - edges[symbol]);
    if (span < LEAST_RANGE) {
      point = point << 32 | word(&from);
      low <<= 32;
      span <<= 32;
    }
  }
  return from.at == from.end && (span == UINT64_MAX || point - low < (UINT64_C(1) << 33) - 1);
}
