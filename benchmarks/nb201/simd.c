// Convolutions for narrow networks on one CPU core. Tensors are (channels, height, width, batch):
// the batch fills the vector lanes, so that 8 channels cost no padding. All sizes are checked by
// the caller: the batch is a multiple of 2 * LANES, the output channels one of BLOCK.

#include <math.h>
#include <stddef.h>

#define LANES 16
#define BLOCK 8
#define TILE 4

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int ints __attribute__((vector_size(LANES * sizeof(int))));
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec where_positive(vec mask, vec v) { return (vec)((ints)v & (mask > 0)); }

INLINE float total(vec v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

typedef struct {
    int in_channels, out_channels, height, width, batch, kernel, stride;
} Shape;

// The input position that a kernel offset reaches from an output position, or -1. Transposed,
// input and output change places: the gradient of the input gathers from the output's.
INLINE int reach(int position, int offset, int pad, int stride, int size, int transposed) {
    int found = position * stride + offset - pad;
    if (transposed) {
        found = position + pad - offset;
        if (found % stride) return -1;
        found /= stride;
    }
    return found >= 0 && found < size ? found : -1;
}

// weight is (kernel, kernel, from, to): contiguous in what one input value is multiplied by.
INLINE void convolve(const float *in, const float *weight, const float *mask, float *out, int from,
                     int to, int in_height, int in_width, int height, int width, int batch,
                     int kernel, int stride, int transposed, int rectify) {
    const int pad = kernel / 2;
    const size_t plane = (size_t)in_height * in_width * batch;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < to; c += BLOCK)
                for (int n = 0; n < batch; n += 2 * LANES) {
                    vec sum[BLOCK][2] = {{{0}}};
                    for (int ky = 0; ky < kernel; ky++) {
                        const int sy = reach(y, ky, pad, stride, in_height, transposed);
                        if (sy < 0) continue;
                        for (int kx = 0; kx < kernel; kx++) {
                            const int sx = reach(x, kx, pad, stride, in_width, transposed);
                            if (sx < 0) continue;
                            const float *p = in + ((size_t)sy * in_width + sx) * batch + n;
                            const float *w = weight + (size_t)(ky * kernel + kx) * from * to + c;
                            for (int k = 0; k < from; k++, p += plane, w += to) {
                                vec a = load(p), b = load(p + LANES);
                                if (rectify) a = where_positive(a, a), b = where_positive(b, b);
#pragma GCC unroll 8
                                for (int i = 0; i < BLOCK; i++) {
                                    sum[i][0] += w[i] * a;
                                    sum[i][1] += w[i] * b;
                                }
                            }
                        }
                    }
#pragma GCC unroll 8
                    for (int i = 0; i < BLOCK; i++) {
                        const size_t at = (((size_t)(c + i) * height + y) * width + x) * batch + n;
                        if (mask) {
                            sum[i][0] = where_positive(load(mask + at), sum[i][0]);
                            sum[i][1] = where_positive(load(mask + at + LANES), sum[i][1]);
                        }
                        store(out + at, sum[i][0]);
                        store(out + at + LANES, sum[i][1]);
                    }
                }
}

// Gradient of TILE × tile weights at one kernel offset.
INLINE void correlate(const float *in, const float *grad, float *weight_grad, Shape s, int co,
                      int ci, int tile, int ky, int kx, int rectify) {
    const int pad = s.kernel / 2, height = s.height / s.stride, width = s.width / s.stride;
    const size_t in_plane = (size_t)s.height * s.width * s.batch;
    const size_t plane = (size_t)height * width * s.batch;
    vec sum[TILE][TILE] = {{{0}}};
    for (int y = 0; y < height; y++) {
        const int sy = reach(y, ky, pad, s.stride, s.height, 0);
        if (sy < 0) continue;
        for (int x = 0; x < width; x++) {
            const int sx = reach(x, kx, pad, s.stride, s.width, 0);
            if (sx < 0) continue;
            const float *g = grad + co * plane + ((size_t)y * width + x) * s.batch;
            const float *p = in + ci * in_plane + ((size_t)sy * s.width + sx) * s.batch;
            for (int n = 0; n < s.batch; n += LANES) {
                vec a[TILE], b[TILE];
#pragma GCC unroll 4
                for (int i = 0; i < TILE; i++) a[i] = load(g + i * plane + n);
#pragma GCC unroll 4
                for (int j = 0; j < tile; j++) {
                    b[j] = load(p + j * in_plane + n);
                    if (rectify) b[j] = where_positive(b[j], b[j]);
                }
#pragma GCC unroll 4
                for (int i = 0; i < TILE; i++)
#pragma GCC unroll 4
                    for (int j = 0; j < tile; j++) sum[i][j] += a[i] * b[j];
            }
        }
    }
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < tile; j++)
            weight_grad[(((size_t)(co + i) * s.in_channels + ci + j) * s.kernel + ky) * s.kernel +
                        kx] = total(sum[i][j]);
}

// weight (out, in, kernel, kernel) → packed (kernel, kernel, in, out), or with in and out swapped.
static void pack(const float *weight, float *packed, Shape s, int swap) {
    const int area = s.kernel * s.kernel;
    for (int o = 0; o < s.out_channels; o++)
        for (int i = 0; i < s.in_channels; i++)
            for (int k = 0; k < area; k++) {
                const int at = swap ? (k * s.out_channels + o) * s.in_channels + i
                                    : (k * s.in_channels + i) * s.out_channels + o;
                packed[at] = weight[(o * s.in_channels + i) * area + k];
            }
}

static void normalize(float *x, float *inverse_std, int channels, size_t count) {
    for (int c = 0; c < channels; c++, x += count) {
        vec sum[2] = {{0}};
        for (size_t n = 0; n < count; n += 2 * LANES)
            for (int i = 0; i < 2; i++) sum[i] += load(x + n + i * LANES);
        const float mean = total(sum[0] + sum[1]) / count;
        vec square[2] = {{0}};
        for (size_t n = 0; n < count; n += 2 * LANES)
            for (int i = 0; i < 2; i++) {
                const vec d = load(x + n + i * LANES) - mean;
                square[i] += d * d;
            }
        const float scale = 1 / sqrtf(total(square[0] + square[1]) / count + 1e-5f);
        for (size_t n = 0; n < count; n += LANES) store(x + n, (load(x + n) - mean) * scale);
        inverse_std[c] = scale;
    }
}

static void normalize_grad(const float *y, const float *inverse_std, const float *grad,
                           float *x_grad, int channels, size_t count) {
    for (int c = 0; c < channels; c++, y += count, grad += count, x_grad += count) {
        vec sum[2] = {{0}}, product[2] = {{0}};
        for (size_t n = 0; n < count; n += 2 * LANES)
            for (int i = 0; i < 2; i++) {
                const vec g = load(grad + n + i * LANES);
                sum[i] += g;
                product[i] += g * load(y + n + i * LANES);
            }
        const float mean = total(sum[0] + sum[1]) / count;
        const float slope = total(product[0] + product[1]) / count;
        for (size_t n = 0; n < count; n += LANES)
            store(x_grad + n,
                  (load(grad + n) - mean - load(y + n) * slope) * inverse_std[c]);
    }
}

// out = normalize?(convolution(rectify?(in))), inverse_std (out_channels) if normalized.
// scratch holds as many floats as the weights.
void forward(const float *in, const float *weight, float *out, float *inverse_std, float *scratch,
             const Shape *shape, int rectify) {
    const Shape s = *shape;
    const int height = s.height / s.stride, width = s.width / s.stride;
    pack(weight, scratch, s, 0);
#define FORWARD(kernel, stride, rectify)                                                       \
    convolve(in, scratch, NULL, out, s.in_channels, s.out_channels, s.height, s.width, height, \
             width, s.batch, kernel, stride, 0, rectify)
    if (s.kernel == 3 && s.stride == 1 && rectify) FORWARD(3, 1, 1);
    else if (s.kernel == 1 && s.stride == 1 && rectify) FORWARD(1, 1, 1);
    else FORWARD(s.kernel, s.stride, rectify);
    if (inverse_std)
        normalize(out, inverse_std, s.out_channels, (size_t)height * width * s.batch);
}

// Gradients of forward's in (NULL: not wanted) and weight. Where out was normalized, inverse_std
// is not NULL and conv_grad, of out's size, takes the gradient ahead of the norm; else it is
// out_grad itself.
void backward(const float *in, const float *weight, const float *out, const float *inverse_std,
              const float *out_grad, float *conv_grad, float *in_grad, float *weight_grad,
              float *scratch, const Shape *shape, int rectify) {
    const Shape s = *shape;
    const int height = s.height / s.stride, width = s.width / s.stride;
    if (inverse_std)
        normalize_grad(out, inverse_std, out_grad, conv_grad, s.out_channels,
                       (size_t)height * width * s.batch);
    for (int co = 0; co < s.out_channels; co += TILE)
        for (int ci = 0; ci < s.in_channels;) {
            const int tile = s.in_channels - ci >= TILE ? TILE : 1;
            for (int ky = 0; ky < s.kernel; ky++)
                for (int kx = 0; kx < s.kernel; kx++)
                    if (tile == TILE)
                        correlate(in, conv_grad, weight_grad, s, co, ci, TILE, ky, kx, rectify);
                    else
                        correlate(in, conv_grad, weight_grad, s, co, ci, 1, ky, kx, rectify);
            ci += tile;
        }
    if (!in_grad) return;
    pack(weight, scratch, s, 1);
    const float *mask = rectify ? in : NULL;
#define INPUT_GRAD(kernel, stride)                                                           \
    convolve(conv_grad, scratch, mask, in_grad, s.out_channels, s.in_channels, height, width, \
             s.height, s.width, s.batch, kernel, stride, 1, 0)
    if (s.kernel == 3 && s.stride == 1) INPUT_GRAD(3, 1);
    else if (s.kernel == 1 && s.stride == 1) INPUT_GRAD(1, 1);
    else INPUT_GRAD(s.kernel, s.stride);
}

// out = 3×3 sums of in · before, times after; weights are (height, width).
void box_sum(const float *in, const float *before, const float *after, float *out, int channels,
             int height, int width, int batch) {
    for (int c = 0; c < channels; c++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                for (int n = 0; n < batch; n += LANES) {
                    vec sum = {0};
                    for (int sy = y - 1; sy <= y + 1; sy++)
                        for (int sx = x - 1; sx <= x + 1; sx++)
                            if (sy >= 0 && sy < height && sx >= 0 && sx < width)
                                sum += load(in + ((size_t)(c * height + sy) * width + sx) * batch +
                                            n) *
                                       before[sy * width + sx];
                    store(out + ((size_t)(c * height + y) * width + x) * batch + n,
                          sum * after[y * width + x]);
                }
}
