/* The walk over a tensor's blocks in C: one pass over the weights where numpy takes many.

   Compiled for the machine at hand and called by native.py alone, with the arrays of compiled.py. The formulas are those
   of mixing, forecast, planes and predicted_contexts, which are the reference and say what they mean; docs/format.md
   defines them all. Nothing rounds: counts, log-odds and sums of products are whole numbers that a double holds exactly,
   in whichever order they are added; a quotient is one division, as in numpy. No index leaves its array, whatever a
   stream says: a level is compared with its limits before it is used. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  ONE = 65536,     /* a probability of one, a weight of one */
  PARTS = 1 << 14, /* bits whose squares are summed at a time */
  RICH_DIGITS = 2, /* this number of top digits of a magnitude have all contexts */
  CONTEXTS = 7,    /* the most contexts of a decision, its node included */
  TAPS = 12        /* the most earlier taps that are features */
};
#define TOTAL (UINT64_C(1) << 24)
#define LEAST_RANGE (UINT64_C(1) << 32)

typedef struct { /* the forecasts of one kind, one for each tap */
  const int64_t *features; /* how many each has */
  const double *starts;
  double *weights, *sums;
  int64_t *room;
  int64_t most; /* features of the longest */
} Fit;

/* Everything a walk reads and changes; every member has eight bytes, in the order of native.py. */
typedef struct {
  /* the range coder: its low end, range, point (of a decoder) and place in the words */
  uint64_t *state;
  uint32_t *words;
  int64_t word_count, decodes;
  /* tables */
  const int16_t *stretch;         /* log-odds from 0 on, by probability in 65536ths */
  const int64_t *squash, *doubts; /* ones in 65536ths, and the expected square of an error, by log-odds */
  const int64_t *eight, *twelve;  /* how large in eight and in twelve steps, by ratio */
  const int64_t *fine;            /* how large in 26 steps, by size to expect */
  const int64_t *surely, *mirror; /* how far from zero, and with the other sign, by prediction */
  const double *trust_size, *trust_value; /* how much an error counts, by size to expect */
  int64_t last_odds, prior, calm, heaviest, most, ridge;
  double heaviest_fit;
  int64_t fullest; /* sums of a forecast are halved beyond this */
  /* mixers: zero, sign, magnitudes one by one, digits */
  double *counts;                         /* each one's zeros, then its ones */
  const int64_t *begins, *cells, *strides;
  double *weights;
  int64_t *whole, *energies, contexts; /* `contexts`: weights of the longest */
  Fit size, value;
  /* what is known of the tensor, [taps, filters, channels] */
  int16_t *signs, *sizes;
  int32_t *kernels; /* sums of sizes and of signed ranks by kernel; null where there are few contexts */
  int64_t *by_filter, *by_channel, *known;
  const int64_t *near; /* the ten neighbours of every tap */
  int64_t taps, filters, channels;
  /* how the tensor is coded */
  int64_t below, above, zero, unary, digits, nodes, rich, rows;
  const int16_t *source;
} Walk;

typedef struct { /* the low end, range, point and next word of the range coder, in registers */
  uint64_t low, span, point;
  int64_t at;
} Coder;

typedef struct { /* one block, and room for everything that is computed for its weights */
  int64_t tap, top, bottom, n, mean, unit, middle;
  const int64_t *spots;
  int32_t *lines[4]; /* steps and leaning of its filters, then of the channels */
  int32_t *place, *prediction, *ranks, *near, *signs, *cross, *both, *kernel; /* by weight */
  int32_t *chosen, *negative, *size, *live, *code, *node, *bits, *error;
  int32_t *cells, *low, *there; /* [contexts, n] */
  int32_t *base, *square, *beyond;
  double *share, *total, *features, *values, *trust, *table, *picked;
} Block;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t within(int64_t a, int64_t low, int64_t high) { return a < low ? low : a > high ? high : a; }
static inline int64_t over(int64_t a, int64_t b) { /* rounded down; b is positive */
  int64_t quotient = a / b;
  return quotient - (a % b < 0);
}

/* -- bits ------------------------------------------------------------------------------------------------------- */
static inline int code_bit(const Walk *w, Coder *c, uint64_t left, int bit) {
  /* Code one bit that is 0 with probability `left` / TOTAL, or decode it; -1 where the stream is broken. */
  uint64_t scale = c->span >> 24, edge = scale * left, whole = scale << 24;
  if (w->decodes) {
    uint64_t beyond = c->point - c->low;
    if (beyond >= whole) return -1;
    bit = beyond >= edge;
  }
  /* Without a branch on the bit, which a processor cannot foresee. */
  uint64_t ones = -(uint64_t)bit, moved = c->low + (edge & ones);
  if (!w->decodes && moved < c->low) { /* carry */
    int64_t back = c->at - 1;
    while (back > 0 && w->words[back] == UINT32_MAX) w->words[back--] = 0;
    w->words[back]++;
  }
  c->low = moved;
  c->span = edge ^ ((edge ^ (whole - edge)) & ones);
  if (c->span < LEAST_RANGE) {
    if (w->decodes)
      c->point = c->point << 32 | (c->at < w->word_count ? w->words[c->at] : 0);
    else
      w->words[c->at] = (uint32_t)(c->low >> 32);
    c->at++;
    c->low <<= 32;
    c->span <<= 32;
  }
  return bit;
}

static void odds(const Walk *w, Block *b, const double *zeros, const double *ones, const double *weights,
                 int contexts, int64_t n) {
  /* What the contexts say of each bit: log-odds beyond its node's own, their squares' sum, the mixture. */
  const int32_t *own = b->there + contexts * n;
  for (int64_t i = 0; i < n; i++) {
    double of_ones = ones[own[i]];
    int32_t level = (int32_t)(of_ones * ONE / (zeros[own[i]] + of_ones));
    b->base[i] = w->stretch[level];
    b->share[i] = (double)(level * (int32_t)w->prior);
    b->total[i] = b->base[i];
    b->square[i] = 0;
  }
  for (int j = 0; j < contexts; j++) {
    const int32_t *cell = b->there + j * n;
    int32_t *row = b->beyond + j * n;
    double weight = weights[j];
    for (int64_t i = 0; i < n; i++) {
      double of_ones = ones[cell[i]];
      int32_t seen = (int32_t)((of_ones * ONE + b->share[i]) / (of_ones + zeros[cell[i]]));
      int32_t more = w->stretch[seen] - b->base[i];
      row[i] = more;
      b->square[i] += more * more;
      b->total[i] += weight * more;
    }
  }
}

static int32_t in_two_cells(double *counts, int64_t count, const int32_t *cells, const int32_t *bits, int64_t n) {
  /* Count bits that fall into two cells at most, without waiting for the last sum before the next; whether they did. */
  int32_t first = cells[0], last = cells[0], elsewhere = 0, of_last = 0, ones = 0, ones_of_last = 0;
  for (int64_t i = 0; i < n; i++) {
    first = cells[i] < first ? cells[i] : first;
    last = cells[i] > last ? cells[i] : last;
  }
  for (int64_t i = 0; i < n; i++) {
    int32_t is_last = cells[i] == last;
    elsewhere |= !is_last & (cells[i] != first);
    of_last += is_last, ones += bits[i], ones_of_last += is_last & bits[i];
  }
  if (elsewhere) return 0;
  counts[last] += of_last - ones_of_last, counts[last + count] += ones_of_last;
  counts[first] += n - of_last - (ones - ones_of_last), counts[first + count] += ones - ones_of_last;
  return 1;
}

static void learn(const Walk *w, Block *b, int64_t which, int contexts, int64_t n) {
  /* Count the bits, and move the weights towards a shorter code for them. */
  int64_t count = w->cells[which], energy = w->energies[which];
  double *counts = w->counts + w->begins[which], *weights = w->weights + which * w->contexts;
  int64_t *whole = w->whole + which * w->contexts;
  for (int j = 0; j <= contexts; j++) {
    const int32_t *cell = b->there + j * n;
    if (j == contexts && n && in_two_cells(counts, count, cell, b->bits, n)) break; /* the nodes' own */
    for (int64_t i = 0; i < n; i++) counts[cell[i] + (b->bits[i] ? count : 0)] += 1.0;
  }
  for (int j = 0; j < contexts; j++) {
    const int32_t *row = b->beyond + j * n;
    int64_t slope = 0;
    for (int64_t i = 0; i < n; i++) slope += (int64_t)row[i] * b->error[i];
    whole[j] = within(whole[j] + over(slope * ONE, energy), -w->heaviest, w->heaviest);
    weights[j] = whole[j] / (double)ONE;
  }
}

static int flip(const Walk *w, Block *b, int64_t which, int contexts, int64_t n) {
  /* Code (or decode) the n `bits` of one mixer, whose cells are in `there`, and learn; 0 where the stream is broken. */
  double *zeros = w->counts + w->begins[which];
  int64_t rest = 0, energy = w->energies[which] - (w->energies[which] >> 3);
  Coder c = {w->state[0], w->state[1], w->state[2], (int64_t)w->state[3]};
  if (energy < w->calm) energy = w->calm;
  odds(w, b, zeros, zeros + w->cells[which], w->weights + which * w->contexts, contexts, n);
  int32_t *place = b->base, *likely = b->error, *left = b->beyond + contexts * n; /* free until `learn`, or unused */
  for (int64_t i = 0; i < n; i++) {
    place[i] = (int32_t)within((int64_t)b->total[i], 0, w->last_odds);
    likely[i] = (int32_t)w->squash[place[i]];
    left[i] = (int32_t)((int64_t)(ONE - likely[i]) * ((1 << 24) - 2) >> 16) + 1;
  }
  for (int64_t i = 0; i < n; i++) {
    int bit = code_bit(w, &c, (uint64_t)left[i], b->bits[i]);
    if (bit < 0) return 0;
    b->bits[i] = bit;
  }
  for (int64_t from = 0; from < n; from += PARTS) {
    int64_t squares = 0, to = least(from + PARTS, n);
    for (int64_t i = from; i < to; i++) squares += (int64_t)b->square[i] * w->doubts[place[i]];
    if (to - from == PARTS) energy += squares >> 4, squares = 0;
    rest = squares;
  }
  for (int64_t i = 0; i < n; i++) b->error[i] = (b->bits[i] ? ONE : 0) - likely[i];
  w->energies[which] = energy + (rest >> 4);
  w->state[0] = c.low, w->state[1] = c.span, w->state[2] = c.point, w->state[3] = (uint64_t)c.at;
  learn(w, b, which, contexts, n);
  return 1;
}

/* -- forecasts -------------------------------------------------------------------------------------------------- */
static void step(const Walk *w, const Fit *fit, int64_t tap) {
  /* One step towards the least squares, one weight after the other. */
  int64_t count = fit->features[tap], largest = 0;
  double *weights = fit->weights + tap * fit->most, *sums = fit->sums + tap * fit->most * (fit->most + 1);
  const double *starts = fit->starts + tap * fit->most;
  int shift = 0;
  for (int64_t j = 0; j < count; j++) {
    int64_t square = (int64_t)sums[j * (fit->most + 1) + j];
    if (square > largest) largest = square;
  }
  while (largest >> shift >= 1 << 26) shift++;
  double scale = ldexp(1.0, -shift), ridge = (double)(w->ridge >> shift);
  for (int64_t j = 0; j < count; j++) {
    const double *row = sums + j * (fit->most + 1);
    double products = 0.0;
    for (int64_t k = 0; k < count; k++) products += floor(row[k] * scale) * weights[k];
    double rest = floor(row[count] * scale) * ONE + ridge * (starts[j] - weights[j]) - products;
    double divisor = floor(row[j] * scale) + ridge + 1;
    double left = fmod(rest, divisor);
    if (left < 0) left += divisor;
    double moved = weights[j] + floor((rest - left) / divisor + 0.5);
    weights[j] = moved > w->heaviest_fit ? w->heaviest_fit : moved < -w->heaviest_fit ? -w->heaviest_fit : moved;
  }
}

static double largest_of(const double *sums, int64_t count, int64_t stride) {
  double largest = 0.0;
  for (int64_t j = 0; j < count; j++)
    for (int64_t k = 0; k <= count; k++)
      if (fabs(sums[j * stride + k]) > largest) largest = fabs(sums[j * stride + k]);
  return largest;
}

static void fit_block(const Walk *w, Block *b, const Fit *fit, const double *features, int64_t every) {
  /* Take every `every`-th column into account, the last row being the target of the others; one step. */
  int64_t tap = b->tap, count = fit->features[tap], used = (b->n + every - 1) / every, stride = fit->most + 1;
  double *sums = fit->sums + tap * fit->most * stride;
  for (int64_t j = 0; j <= count; j++)
    for (int64_t i = 0; i < used; i++) b->picked[j * used + i] = features[j * b->n + i * every];
  for (int64_t j = 0; j < count; j++) {
    double *trusted = b->picked + (count + 1) * used;
    for (int64_t i = 0; i < used; i++) trusted[i] = b->picked[j * used + i] * b->trust[i];
    for (int64_t k = j; k <= count; k++) { /* products of two features are alike both ways */
      const double *other = b->picked + k * used;
      double total = 0.0;
      for (int64_t i = 0; i < used; i++) total += trusted[i] * other[i];
      sums[j * stride + k] += total;
      if (k > j && k < count) sums[k * stride + j] += total;
    }
  }
  fit->room[tap] -= used * w->most * w->most * (1 << 15);
  if (fit->room[tap] <= 0) {
    double largest;
    while ((largest = largest_of(sums, count, stride)) >= (double)w->fullest)
      for (int64_t j = 0; j < count; j++)
        for (int64_t k = 0; k <= count; k++) sums[j * stride + k] = floor(sums[j * stride + k] / 2);
    fit->room[tap] = w->fullest - (int64_t)largest;
  }
  step(w, fit, tap);
}

static void sum_features(const Fit *fit, int64_t tap, const double *features, int64_t n, double *out) {
  memset(out, 0, (size_t)n * sizeof *out);
  for (int64_t j = 0; j < fit->features[tap]; j++) {
    double weight = fit->weights[tap * fit->most + j] * (1.0 / ONE);
    const double *row = features + j * n;
    for (int64_t i = 0; i < n; i++) out[i] += weight * row[i];
  }
}

static void line_features(const Walk *w, const Block *b, double *large, double *lean, int64_t count,
                          const int64_t *sums, int64_t lines, int64_t all) {
  /* The mean size and the mean signed rank of each line (filters or channels), in the unit of features. */
  for (int64_t k = 0; k < lines; k++) {
    large[k] = (double)least((sums[k] * 16384 + 64 * b->unit) / ((count + 1) * b->unit), w->most);
    lean[k] = b->tap ? (double)within(over(sums[all + k] * 16384, count * b->unit), -w->most, w->most) : 0.0;
  }
}

static void features_of(const Walk *w, Block *b) {
  /* What the forecasts of size and of value are made of, [features, n]; the row after the last is left open. */
  int64_t channels = w->channels, n = b->n, taps = least(b->tap, TAPS), rows = b->bottom - b->top;
  double *of_filter = b->share, *of_channel = b->total; /* free until the first bit */
  double *filter_leans = of_filter + rows, *channel_leans = of_channel + channels;
  line_features(w, b, of_filter, filter_leans, b->tap * channels, w->by_filter + b->top, rows, w->filters);
  line_features(w, b, of_channel, channel_leans, b->tap * w->filters + b->top, w->by_channel, channels, channels);
  for (int64_t row = 0; row < rows; row++) {
    double *size = b->features + row * channels, *value = b->values + row * channels, filter = of_filter[row];
    for (int64_t column = 0; column < channels; column++) {
      double both = floor(filter * of_channel[column] * (1.0 / 64));
      size[column] = filter;
      size[n + column] = of_channel[column];
      size[2 * n + column] = both < (double)w->most ? both : (double)w->most;
      value[column] = filter_leans[row];
      value[n + column] = channel_leans[column];
    }
  }
  for (int64_t k = 0; k < taps; k++) {
    const int16_t *ranks = w->signs + ((b->tap - taps + k) * w->filters + b->top) * channels;
    double *size = b->features + (3 + k) * n, *value = b->values + (2 + k) * n;
    for (int64_t i = 0; i < n; i++) {
      value[i] = b->table[ranks[i] + b->middle];
      size[i] = fabs(value[i]);
    }
  }
}

static void predict(const Walk *w, Block *b) {
  /* The size to expect of every weight, within its limits, and its prediction. */
  double most = (double)w->most;
  sum_features(&w->size, b->tap, b->features, b->n, b->share);
  if (b->tap) sum_features(&w->value, b->tap, b->values, b->n, b->total);
  for (int64_t i = 0; i < b->n; i++) {
    double size = b->share[i] < 0 ? 0 : b->share[i] > most ? most : b->share[i];
    b->place[i] = (int32_t)size;
  }
  for (int64_t i = 0; i < b->n; i++) {
    int32_t standing = 12;
    if (b->tap) {
      double value = b->total[i] + most;
      value = value < 0 ? 0 : value > 2 * most ? 2 * most : value;
      double moved = 8.0 * ((double)(int32_t)value - most) / (double)(b->place[i] > 3 ? b->place[i] : 3) + 12.5;
      standing = (int32_t)(moved < 0 ? 0 : moved > 24 ? 24 : moved);
    }
    b->prediction[i] = standing * 26 + (int32_t)w->fine[b->place[i]];
  }
}

/* -- what is known ---------------------------------------------------------------------------------------------- */
static inline int64_t ratio(int64_t total, int64_t count, int64_t mean) {
  /* A sum of `count` ranks against the mean, in 16ths, below 256. */
  return least((total * 256 + mean) / (count * mean), 255);
}

static void line_steps(const Walk *w, const Block *b, const int64_t *sums, int64_t all, int64_t lines,
                       int64_t count, int32_t *steps, int32_t *leans) {
  /* How large the weights of each line are so far, in twelve steps (as all weights are, where `count` is 0), and which
     way their signs lean, in seventeen. */
  int64_t known = w->known[0] > 1 ? w->known[0] : 1, against = count * b->mean / 16 > 1 ? count * b->mean / 16 : 1;
  for (int64_t k = 0; k < lines; k++) {
    steps[k] = (int32_t)w->twelve[count ? ratio(sums[k], count, b->mean) : ratio(w->known[1], known, b->mean)];
    leans[k] = (int32_t)within(over(sums[all + k] * 12, against) + 8, 0, 16);
  }
}

static void neighbours(const Walk *w, Block *b) {
  /* The step of all neighbours' sizes of every weight, and the number that the signs around it make. With all contexts
     also cross (in eight steps) with the kernel, the sums of the neighbours' ranks, and the kernel's. */
  int64_t n = b->n, known_four = 0, known = 0, plane = w->filters * w->channels;
  int32_t *four = b->live, *others = b->code, *cross = b->node, *left = b->error, *rest = b->bits; /* free until now */
  static const int weight[4] = {27, 9, 3, 1}, at[4] = {8, 0, 9, 1};
  memset(four, 0, (size_t)n * 4), memset(others, 0, (size_t)n * 4);
  memset(cross, 0, (size_t)n * 4), memset(left, 0, (size_t)n * 4), memset(rest, 0, (size_t)n * 4);
  for (int64_t i = 0; i < n; i++) b->signs[i] = 40;
  for (int k = 0; k < 8; k++) {
    if (b->spots[k] < 0 || b->spots[k] >= b->tap) continue;
    const int16_t *sizes = w->sizes + b->spots[k] * plane + b->top * w->channels;
    const int16_t *ranks = w->signs + b->spots[k] * plane + b->top * w->channels;
    known += k < 4 ? 2 : 1, known_four += k < 4;
    for (int64_t i = 0; i < n; i++) (k < 4 ? four : others)[i] += sizes[i];
    if (!w->rich) continue;
    for (int64_t i = 0; i < n; i++) (k < 4 ? cross : rest)[i] += ranks[i];
    if (k == 4 || k == 6)
      for (int64_t i = 0; i < n; i++) left[i] += ranks[i];
  }
  for (int k = 0; k < 4; k++) {
    if (b->spots[at[k]] < 0 || b->spots[at[k]] >= b->tap) continue;
    const int16_t *ranks = w->signs + b->spots[at[k]] * plane + b->top * w->channels;
    for (int64_t i = 0; i < n; i++) b->signs[i] += weight[k] * ((ranks[i] > 0) - (ranks[i] < 0));
  }
  double mean = (double)b->mean, half = (double)(b->mean / 2);
  for (int64_t i = 0; i < n; i++) { /* a quotient of whole numbers below 2**53 is exact when rounded down */
    double all = (2.0 * four[i] + others[i]) * 256.0 + mean, place = known ? all / ((double)known * mean) : 0.0;
    b->near[i] = known ? (int32_t)w->eight[(int32_t)(place > 255.0 ? 255.0 : place)] : 0;
  }
  if (!w->rich) return;
  const int32_t *kernel_sizes = w->kernels + b->top * w->channels, *kernel_ranks = kernel_sizes + plane;
  for (int64_t i = 0; i < n; i++) {
    int64_t crossing = known_four ? w->eight[ratio(four[i], known_four, b->mean)] : 0;
    int64_t kernel = b->tap ? w->eight[ratio(kernel_sizes[i], b->tap, b->mean)] : 0;
    b->cross[i] = (int32_t)(crossing * 8 + kernel);
  }
  for (int64_t i = 0; i < n; i++) {
    double first = floor(floor((cross[i] * 16.0 + half) / mean) * 2 / 3) + 6;
    double second = floor(floor(((double)(cross[i] - left[i]) * 16.0 + half) / mean) * 2 / 3) + 12;
    double third = floor(floor((2.0 * cross[i] + rest[i]) * 16.0 + half) / mean);
    third = floor(third * 2 / 3) + 12;
    double kernel = floor(floor((kernel_ranks[i] * 16.0 + half) / mean) / 3) + 6;
    first = first < 0 ? 0 : first > 12 ? 12 : first, kernel = kernel < 0 ? 0 : kernel > 12 ? 12 : kernel;
    second = second < 0 ? 0 : second > 24 ? 24 : second, third = third < 0 ? 0 : third > 24 ? 24 : third;
    b->both[i] = (int32_t)(second * 25 + third);
    b->kernel[i] = (int32_t)(first * 13 + kernel);
  }
}

static void close_block(const Walk *w, const Block *b) {
  /* Take a block's ranks into account. */
  int64_t channels = w->channels, from = b->tap * w->filters * channels + b->top * channels, all = 0, i = 0;
  for (int64_t row = b->top; row < b->bottom; row++) {
    int64_t sizes = 0, ranks = 0;
    for (int64_t column = 0; column < channels; column++, i++) {
      int32_t rank = b->ranks[i], size = abs(rank);
      w->signs[from + i] = (int16_t)rank;
      w->sizes[from + i] = (int16_t)size;
      w->by_channel[column] += size;
      w->by_channel[channels + column] += rank;
      sizes += size, ranks += rank;
    }
    w->by_filter[row] += sizes;
    w->by_filter[w->filters + row] += ranks;
    all += sizes;
  }
  if (w->rich) {
    int32_t *kernels = w->kernels + b->top * channels, *ranks = kernels + w->filters * channels;
    for (i = 0; i < b->n; i++) kernels[i] += abs(b->ranks[i]), ranks[i] += b->ranks[i];
  }
  w->known[0] += b->n;
  w->known[1] += all;
}

/* -- contexts --------------------------------------------------------------------------------------------------- */
static int zero_cells(const Walk *w, Block *b) {
  /* The cells of "is it zero" of every weight, into `there`; how many contexts that is, without the node. */
  int64_t n = b->n, channels = w->channels;
  int32_t step = (int32_t)least(b->tap, 15), *cells = b->there;
  for (int64_t i = 0; i < n; i++) cells[i] = step;
  for (int k = 0; k < 4; k++) {
    if (b->spots[k] < 0 || b->spots[k] >= b->tap) continue;
    const int16_t *sizes = w->sizes + (b->spots[k] * w->filters + b->top) * channels;
    for (int64_t i = 0; i < n; i++) cells[i] += (sizes[i] > 0) << (4 + k);
  }
  for (int64_t i = 0; i < n; i++) cells[n + i] = 256 + (int32_t)w->fine[b->place[i]] * 16 + step;
  for (int64_t row = 0, i = 0; row < b->bottom - b->top; row++)
    for (int64_t column = 0; column < channels; column++, i++)
      cells[2 * n + i] = 672 + b->lines[0][row] * 12 + b->lines[2][column];
  int32_t *sure = cells + (w->rich ? 5 : 3) * n, *node = sure + n;
  for (int64_t i = 0; i < n; i++) {
    sure[i] = (w->rich ? 1008 : 816) + (int32_t)w->surely[b->prediction[i]];
    node[i] = w->rich ? 1216 : 1024;
  }
  if (!w->rich) return 4;
  for (int64_t i = 0; i < n; i++) {
    cells[3 * n + i] = 816 + b->cross[i];
    cells[4 * n + i] = 880 + b->near[i] * 16 + step;
  }
  return 6;
}

static int sign_cells(const Walk *w, Block *b, int64_t m) {
  /* The cells of the signs of the m chosen weights, into `there`; how many contexts that is. */
  int32_t *cells = b->there;
  if (!w->rich) {
    for (int64_t i = 0; i < m; i++) {
      cells[i] = b->signs[b->chosen[i]];
      cells[m + i] = 81 + b->prediction[b->chosen[i]];
      cells[2 * m + i] = 731;
    }
    return 2;
  }
  int64_t row = 0, first = 0;
  for (int64_t i = 0; i < m; i++) {
    int64_t at = b->chosen[i];
    while (at >= first + w->channels) row++, first += w->channels;
    cells[i] = b->both[at];
    cells[m + i] = 625 + b->lines[1][row] * 17 + b->lines[3][at - first];
    cells[2 * m + i] = 914 + b->kernel[at];
    cells[3 * m + i] = 1083 + b->signs[at];
    cells[4 * m + i] = 1164 + b->prediction[at];
    cells[5 * m + i] = 1814;
  }
  return 5;
}

static void size_cells(const Walk *w, Block *b, int64_t m) {
  /* The cells of the magnitudes of the m chosen weights within node 0, into `cells`, and of their low digits, `low`. */
  int32_t step = (int32_t)least(b->tap, 15), *cells = b->cells, *low = b->low, rich = (int32_t)w->rich;
  int64_t row = 0, first = 0;
  for (int64_t i = 0; i < m; i++) {
    int64_t at = b->chosen[i];
    while (at >= first + w->channels) row++, first += w->channels;
    int32_t near = b->near[at] * 12, fine = (int32_t)w->fine[b->place[at]];
    int32_t filter = b->lines[0][row], channel = b->lines[2][at - first];
    int32_t prediction = b->negative[i] ? (int32_t)w->mirror[b->prediction[at]] : b->prediction[at];
    low[i] = filter;
    low[m + i] = 12 + (rich ? channel : fine);
    if (rich) {
      cells[i] = b->negative[i] ? 624 - b->both[at] : b->both[at];
      cells[m + i] = 625 + b->cross[at];
      cells[2 * m + i] = 689 + near + filter;
      cells[3 * m + i] = 785 + near + channel;
      cells[4 * m + i] = 881 + prediction;
      cells[5 * m + i] = 1531 + fine * 16 + step;
      cells[6 * m + i] = 1947;
      low[2 * m + i] = 24 + fine;
      low[3 * m + i] = 50;
    } else {
      cells[i] = near + filter;
      cells[m + i] = 96 + prediction;
      cells[2 * m + i] = 746 + fine * 16 + step;
      cells[3 * m + i] = 1162;
      low[2 * m + i] = 38;
    }
  }
}

/* -- the walk --------------------------------------------------------------------------------------------------- */
static void at_nodes(Block *b, const int32_t *cells, int contexts, int64_t m, int64_t live, int64_t stride) {
  /* The cells of the weights that are left, each in its node, into `there`. */
  for (int j = 0; j <= contexts; j++) {
    const int32_t *row = cells + j * m;
    int32_t *to = b->there + j * live;
    for (int64_t i = 0; i < live; i++) to[i] = row[b->live[i]] + b->node[i] * (int32_t)stride;
  }
}

static int code_sizes(const Walk *w, Block *b, int64_t m) {
  /* Code the magnitudes (from 1 on) of the m chosen weights, or decode them; 0 where the stream is broken. */
  int contexts = w->rich ? 6 : 3;
  int64_t live = m;
  int32_t *known = b->near; /* free by now: the cells are made */
  memcpy(known, b->size, (size_t)m * 4);
  for (int64_t i = 0; i < m; i++) b->size[i] = 1, b->live[i] = (int32_t)i;
  for (int64_t k = 0; k < w->unary; k++) {
    int64_t more = 0;
    for (int64_t i = 0; i < live; i++) {
      b->bits[i] = known[b->live[i]] > k + 1;
      b->node[i] = b->negative[b->live[i]];
    }
    at_nodes(b, b->cells, contexts, m, live, w->strides[2 + k]);
    if (!flip(w, b, 2 + k, contexts, live)) return 0;
    for (int64_t i = 0; i < live; i++) {
      int32_t at = b->live[i];
      b->size[at] += b->bits[i];
      b->live[more] = at;
      more += b->bits[i];
    }
    if (!(live = more)) return 1;
  }
  for (int64_t i = 0; i < live; i++) b->code[i] = b->negative[b->live[i]]; /* twice the digits so far, and the sign */
  for (int64_t depth = 0; depth < w->digits; depth++) {
    int64_t which = 2 + w->unary + depth, shift = w->digits - 1 - depth;
    int top = depth < RICH_DIGITS, of = top ? contexts : w->rich ? 3 : 2;
    for (int64_t i = 0; i < live; i++) {
      b->bits[i] = (int32_t)((known[b->live[i]] - 1 - w->unary) >> shift & 1);
      b->node[i] = b->code[i];
      if (INT64_C(1) << depth > w->nodes)
        b->node[i] = (int32_t)least(b->code[i] >> 1, w->nodes - 1) * 2 + b->negative[b->live[i]];
    }
    at_nodes(b, top ? b->cells : b->low, of, m, live, w->strides[which]);
    if (!flip(w, b, which, of, live)) return 0;
    for (int64_t i = 0; i < live; i++) b->code[i] = (b->code[i] + b->bits[i]) * 2 - b->negative[b->live[i]];
  }
  for (int64_t i = 0; i < live; i++) b->size[b->live[i]] += b->code[i] >> 1;
  return 1;
}

static int code_ranks(const Walk *w, Block *b) {
  /* Code the signed ranks of a block, or decode them; 0, or what is wrong as `secateur_walk` says it. */
  int64_t m = 0;
  if (w->zero) {
    for (int64_t i = 0; i < b->n; i++) b->bits[i] = b->ranks[i] != 0;
    int contexts = zero_cells(w, b);
    if (!flip(w, b, 0, contexts, b->n)) return 1;
    if (w->decodes) memset(b->ranks, 0, (size_t)b->n * 4);
    for (int64_t i = 0; i < b->n; i++) {
      b->chosen[m] = (int32_t)i;
      m += b->bits[i];
    }
  } else {
    for (; m < b->n; m++) b->chosen[m] = (int32_t)m;
  }
  if (!m) return 0;
  for (int64_t i = 0; i < m; i++) b->negative[i] = w->above == 0;
  if (w->below && w->above) {
    for (int64_t i = 0; i < m; i++) b->bits[i] = b->ranks[b->chosen[i]] < 0;
    int contexts = sign_cells(w, b, m);
    if (!flip(w, b, 1, contexts, m)) return 1;
    memcpy(b->negative, b->bits, (size_t)m * 4);
  }
  for (int64_t i = 0; i < m; i++) b->size[i] = w->below > 1 || w->above > 1 ? abs(b->ranks[b->chosen[i]]) : 1;
  if (w->below > 1 || w->above > 1) {
    size_cells(w, b, m);
    if (!code_sizes(w, b, m)) return 1;
  }
  for (int64_t i = 0; i < m; i++) {
    if (b->size[i] > (b->negative[i] ? w->below : w->above)) return 2;
    b->ranks[b->chosen[i]] = b->negative[i] ? -b->size[i] : b->size[i];
  }
  return 0;
}

static void open_block(const Walk *w, Block *b, int64_t tap, int64_t top) {
  /* Everything that is known of a block before its first bit. */
  int64_t largest = w->below > w->above ? w->below : w->above, count = w->known[0], total = w->known[1];
  if (largest < 1) largest = 1;
  b->tap = tap, b->top = top, b->bottom = least(top + w->rows, w->filters);
  b->n = (b->bottom - top) * w->channels;
  b->mean = count ? 16 * total / count : 16 * largest / 3;
  b->unit = count ? 256 * total / count : 256 * largest / 3;
  if (b->mean < 4) b->mean = 4;
  if (b->unit < 16) b->unit = 16;
  b->middle = largest, b->spots = w->near + 10 * tap;
  for (int64_t rank = -largest; rank <= largest; rank++) {
    int64_t size = least(256 * 64 * llabs(rank) / b->unit, w->most);
    b->table[rank + largest] = (double)(rank < 0 ? -size : size);
  }
  line_steps(w, b, w->by_filter + top, w->filters, b->bottom - top, tap * w->channels, b->lines[0], b->lines[1]);
  line_steps(w, b, w->by_channel, w->channels, w->channels, tap * w->filters + top, b->lines[2], b->lines[3]);
  neighbours(w, b);
  features_of(w, b);
  predict(w, b);
}

static void fit_both(const Walk *w, Block *b) {
  /* Let the forecasts learn from the block's ranks. */
  int64_t every = b->n / 512 > 1 ? b->n / 512 : 1, used = (b->n + every - 1) / every, taps = least(b->tap, TAPS);
  for (int kind = 0; kind < (b->tap ? 2 : 1); kind++) {
    double *of = kind ? b->values : b->features, *target = of + (kind ? 2 + taps : 3 + taps) * b->n;
    for (int64_t i = 0; i < used; i++) {
      double value = b->table[b->ranks[i * every] + b->middle];
      int32_t at = b->place[i * every];
      target[i * every] = kind ? value : fabs(value);
      b->trust[i] = kind ? w->trust_value[at] : w->trust_size[at];
    }
    fit_block(w, b, kind ? &w->value : &w->size, of, every);
  }
}

static void *room(const Walk *w, Block *b) {
  /* Memory for the arrays of the longest block, and the block's pointers into it; null where there is none. */
  size_t n = (size_t)(least(w->rows, w->filters) * w->channels), ranks = 2 * (size_t)(w->below + w->above) + 3;
  size_t lines = (size_t)(w->rows + w->channels), longest = 2 * n + lines * 2;
  size_t doubles = 2 * longest + 2 * (TAPS + 4) * n + 1024 + ranks + (TAPS + 6) * 1024;
  size_t wholes = 18 * n + 2 * lines + (2 * CONTEXTS + 4) * n + CONTEXTS * n;
  double *at = malloc(doubles * sizeof(double) + wholes * sizeof(int32_t));
  if (!at) return NULL;
  b->share = at, b->total = at + longest, b->features = b->total + longest;
  b->values = b->features + (TAPS + 4) * n, b->trust = b->values + (TAPS + 4) * n;
  b->picked = b->trust + 1024, b->table = b->picked + (TAPS + 6) * 1024;
  int32_t **by_weight[] = {&b->place, &b->prediction, &b->ranks, &b->near,  &b->signs, &b->cross,
                           &b->both,  &b->kernel,     &b->chosen, &b->negative, &b->size, &b->live,
                           &b->code,  &b->node,       &b->bits,  &b->error, &b->base,  &b->square};
  int32_t *next = (int32_t *)(b->table + ranks);
  for (size_t k = 0; k < sizeof by_weight / sizeof *by_weight; k++, next += n) *by_weight[k] = next;
  b->lines[0] = next, b->lines[1] = b->lines[0] + w->rows;
  b->lines[2] = b->lines[1] + w->rows, b->lines[3] = b->lines[2] + w->channels;
  b->cells = next + 2 * lines, b->there = b->cells + CONTEXTS * n;
  b->low = b->there + CONTEXTS * n, b->beyond = b->low + 4 * n;
  return at;
}

/* Code the blocks of filters `first` to `end` of one tap, whose signed ranks are in `source`, or decode them into
   `signs`. 0: done. 1: the stream is none of these. 2: a level lies outside the codebook. 3: no memory. */
int64_t secateur_walk(const Walk *w, int64_t tap, int64_t first, int64_t end) {
  Block block, *b = &block;
  void *memory = room(w, b);
  int wrong = memory ? 0 : 3;
  for (int64_t top = first; top < end && !wrong; top += w->rows) {
    open_block(w, b, tap, top);
    if (w->decodes) {
      memset(b->ranks, 0, (size_t)b->n * 4);
    } else {
      const int16_t *source = w->source + (tap * w->filters + top) * w->channels;
      for (int64_t i = 0; i < b->n; i++) b->ranks[i] = source[i];
    }
    wrong = code_ranks(w, b);
    if (!wrong) {
      fit_both(w, b);
      close_block(w, b);
    }
  }
  free(memory);
  return wrong;
}

/* The bytes of `Walk`, by which the caller checks that both sides mean the same. */
int64_t secateur_walk_bytes(void) { return (int64_t)sizeof(Walk); }
