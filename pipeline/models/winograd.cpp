// 3 x 3 convolutions of stride 1 by Winograd's minimal filtering, F(4 x 4, 3 x 3), on channels-last float32 tensors.
//
// Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4: with d a 6 x 6 tile of the
// input, g the 3 x 3 filter and G, B, A the matrices below,  Y = A^T [ (G g G^T) . (B^T d B) ] A  is a 4 x 4 tile of the
// output, so that 36 multiplications per channel pair do what takes 144. The sums over channels are 36 matrix products.
// The points are 0, +-3/4, +-3/2 and infinity: with the usual 0, +-1, +-2 the rounding error is larger.
//
// An output value is made by the same operations in the same order whatever tiles are computed beside it, by however
// many threads: no result depends on the batch.
//
// C interface, so that it needs neither Python's nor PyTorch's headers.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats of a vector
constexpr int ROWS = 12;   // rows of the product that are held in registers, two vectors wide
#else
constexpr int LANES = 8;
constexpr int ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;
constexpr int TILE = 4, EDGE = 6, POINTS = EDGE * EDGE;
// Tiles that one thread takes through all three steps, so that what is between them stays in its cache.
constexpr int64_t OWN_TILES = 24;
// Tiles that all threads take through together where the filters are so large that each should be read only once.
constexpr int64_t SHARED_TILES = 192;
constexpr int64_t LARGE_FILTERS = 16 << 20;

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef float loose_vec __attribute__((vector_size(LANES * sizeof(float)), aligned(alignof(float))));

static inline vec load(const float* from) { return *reinterpret_cast<const loose_vec*>(from); }
static inline void store(float* to, vec value) { *reinterpret_cast<loose_vec*>(to) = value; }

struct Shape {
    int64_t height, width, channels, padding;
    int64_t out_height, out_width, out_channels;
    int64_t down, across, tiles;  // tiles of an image in each direction, and of all images
    // Rows of the transformed input and of the products: longer than the channels, so that the rows of a block do not
    // all fall on the same few lines of the cache.
    int64_t input_stride() const { return channels + 16; }
    int64_t product_stride() const { return out_channels + 16; }
};

struct Place {
    int64_t image, row, column;  // of the tile's first output
    Place(const Shape& shape, int64_t tile) {
        image = tile / (shape.down * shape.across);
        const int64_t rest = tile % (shape.down * shape.across);
        row = rest / shape.across * TILE;
        column = rest % shape.across * TILE;
    }
};

static inline void transform_input(const vec* d, vec* out) {  // B^T d
    const float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;
    const vec even_a = d[4] - b2 * d[2], odd_a = a * (d[3] - b2 * d[1]);
    const vec even_b = d[4] - a2 * d[2], odd_b = b * (d[3] - a2 * d[1]);
    out[0] = (a2 * b2) * d[0] - (a2 + b2) * d[2] + d[4];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = (a2 * b2) * d[1] - (a2 + b2) * d[3] + d[5];
}

static inline void transform_product(const vec* m, vec* out) {  // A^T m
    const float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;
    const vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    out[0] = m[0] + even_a + even_b;
    out[1] = a * odd_a + b * odd_b;
    out[2] = a2 * even_a + b2 * even_b;
    out[3] = (a2 * a) * odd_a + (b2 * b) * odd_b + m[5];
}

// B^T d B of one tile, point p at out[p * step].
static void tile_in(const Shape& s, const float* input, const float* zeros, int64_t tile, float* out, int64_t step) {
    const Place place(s, tile);
    const float* image = input + place.image * s.height * s.width * s.channels;
    const float* pixel[POINTS];
    for (int i = 0; i < EDGE; i++)
        for (int j = 0; j < EDGE; j++) {
            const int64_t y = place.row + i - s.padding, x = place.column + j - s.padding;
            const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
            pixel[i * EDGE + j] = inside ? image + (y * s.width + x) * s.channels : zeros;
        }
    for (int64_t c = 0; c < s.channels; c += LANES) {
        vec half[EDGE][EDGE];
        for (int j = 0; j < EDGE; j++) {
            vec d[EDGE], column[EDGE];
            for (int i = 0; i < EDGE; i++) d[i] = load(pixel[i * EDGE + j] + c);
            transform_input(d, column);
            for (int i = 0; i < EDGE; i++) half[i][j] = column[i];
        }
        for (int i = 0; i < EDGE; i++) {
            vec row[EDGE];
            transform_input(half[i], row);
            for (int j = 0; j < EDGE; j++) store(out + (i * EDGE + j) * step + c, row[j]);
        }
    }
}

// A^T m A of one tile, plus bias and residual, through the ReLU, into the output.
static void tile_out(const Shape& s, const float* product, int64_t step, int64_t tile, const float* bias,
                     const float* residual, bool relu, float* output) {
    const Place place(s, tile);
    const int rows = static_cast<int>(std::min<int64_t>(TILE, s.out_height - place.row));
    const int columns = static_cast<int>(std::min<int64_t>(TILE, s.out_width - place.column));
    for (int64_t k = 0; k < s.out_channels; k += LANES) {
        vec half[TILE][EDGE];
        for (int j = 0; j < EDGE; j++) {
            vec m[EDGE], column[TILE];
            for (int i = 0; i < EDGE; i++) m[i] = load(product + (i * EDGE + j) * step + k);
            transform_product(m, column);
            for (int i = 0; i < TILE; i++) half[i][j] = column[i];
        }
        const vec shift = bias ? load(bias + k) : vec{};
        for (int i = 0; i < rows; i++) {
            vec row[TILE];
            transform_product(half[i], row);
            for (int j = 0; j < columns; j++) {
                const int64_t pixel = (place.image * s.out_height + place.row + i) * s.out_width + place.column + j;
                vec value = row[j] + shift;
                if (residual) value += load(residual + pixel * s.out_channels + k);
                // A comparison with NaN is false: NaN stays, as in PyTorch.
                if (relu) value = value < 0 ? vec{} : value;
                store(output + pixel * s.out_channels + k, value);
            }
        }
    }
}

// N rows of `a` times one panel of the filters, both (.., depth), into N rows of `out`.
template <int N>
static void product_rows(const float* a, int64_t a_stride, const float* panel, float* out, int64_t out_stride,
                         int64_t depth) {
    vec sum[N][2] = {};
    for (int64_t c = 0; c < depth; c++, panel += PANEL) {
        const vec left = load(panel), right = load(panel + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < N; i++) {
            const vec factor = vec{} + a[i * a_stride + c];
            sum[i][0] += factor * left;
            sum[i][1] += factor * right;
        }
    }
    for (int i = 0; i < N; i++) {
        store(out + i * out_stride, sum[i][0]);
        store(out + i * out_stride + LANES, sum[i][1]);
    }
}

template <int N>
static void remaining_rows(int64_t rows, const float* a, int64_t a_stride, const float* panel, float* out,
                           int64_t out_stride, int64_t depth) {
    if constexpr (N > 0) {
        if (rows == N) return product_rows<N>(a, a_stride, panel, out, out_stride, depth);
        remaining_rows<N - 1>(rows, a, a_stride, panel, out, out_stride, depth);
    }
}

static void product(const float* a, int64_t a_stride, const float* panel, float* out, int64_t out_stride,
                    int64_t rows, int64_t depth) {
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * a_stride, out += ROWS * out_stride)
        product_rows<ROWS>(a, a_stride, panel, out, out_stride, depth);
    remaining_rows<ROWS - 1>(rows, a, a_stride, panel, out, out_stride, depth);
}

static bool shared(const Shape& s) {
    return POINTS * s.channels * s.out_channels * static_cast<int64_t>(sizeof(float)) >= LARGE_FILTERS;
}

static int64_t block_floats(const Shape& s, int64_t tiles) {
    return POINTS * tiles * (s.input_stride() + s.product_stride());
}

static Shape shape_of(int64_t images, int64_t height, int64_t width, int64_t channels, int64_t out_channels,
                      int64_t padding) {
    Shape s{height, width, channels, padding, height + 2 * padding - 2, width + 2 * padding - 2, out_channels, 0, 0, 0};
    s.down = (s.out_height + TILE - 1) / TILE;
    s.across = (s.out_width + TILE - 1) / TILE;
    s.tiles = images * s.down * s.across;
    return s;
}

extern "C" {

// Columns of the filters that lie together: filters are (36, out_channels / panel, channels, panel).
int64_t camlake_winograd_panel() { return PANEL; }

// Floats that camlake_winograd needs for itself with so many threads.
int64_t camlake_winograd_scratch(int64_t images, int64_t height, int64_t width, int64_t channels,
                                 int64_t out_channels, int64_t padding, int64_t threads) {
    const Shape s = shape_of(images, height, width, channels, out_channels, padding);
    return channels + (shared(s) ? block_floats(s, SHARED_TILES) : threads * block_floats(s, OWN_TILES));
}

// input (images, height, width, channels), output and residual (images, height + 2 padding - 2, width + 2 padding - 2,
// out_channels), bias (out_channels); bias and residual may be null. channels is a multiple of 16, out_channels of 32.
void camlake_winograd(const float* input, const float* filters, const float* bias, const float* residual,
                      float* output, float* scratch, int64_t images, int64_t height, int64_t width, int64_t channels,
                      int64_t out_channels, int64_t padding, int64_t relu, int64_t threads) {
    const Shape s = shape_of(images, height, width, channels, out_channels, padding);
    const int64_t in = s.input_stride(), out = s.product_stride();
    float* const zeros = scratch;
    std::fill(zeros, zeros + channels, 0.0f);
    scratch += channels;
    if (shared(s)) {
        float* const inputs = scratch;
        float* const products = scratch + POINTS * SHARED_TILES * in;
#pragma omp parallel num_threads(static_cast<int>(threads))
        for (int64_t first = 0; first < s.tiles; first += SHARED_TILES) {
            const int64_t count = std::min(SHARED_TILES, s.tiles - first);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < count; t++)
                tile_in(s, input, zeros, first + t, inputs + t * in, SHARED_TILES * in);
#pragma omp for schedule(static) collapse(2)
            for (int64_t p = 0; p < POINTS; p++)
                for (int64_t k = 0; k < out_channels; k += PANEL)
                    product(inputs + p * SHARED_TILES * in, in, filters + (p * out_channels + k) * channels,
                            products + p * SHARED_TILES * out + k, out, count, channels);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < count; t++)
                tile_out(s, products + t * out, SHARED_TILES * out, first + t, bias, residual, relu, output);
        }
        return;
    }
    // A share of the scratch for each thread, whatever number OpenMP starts in the end.
    const int64_t blocks = (s.tiles + OWN_TILES - 1) / OWN_TILES;
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
    for (int64_t part = 0; part < threads; part++) {
        float* const inputs = scratch + part * block_floats(s, OWN_TILES);
        float* const products = inputs + POINTS * OWN_TILES * in;
        for (int64_t block = part * blocks / threads; block < (part + 1) * blocks / threads; block++) {
            const int64_t first = block * OWN_TILES, count = std::min(OWN_TILES, s.tiles - first);
            for (int64_t t = 0; t < count; t++)
                tile_in(s, input, zeros, first + t, inputs + t * in, OWN_TILES * in);
            for (int64_t p = 0; p < POINTS; p++)
                for (int64_t k = 0; k < out_channels; k += PANEL)
                    product(inputs + p * OWN_TILES * in, in, filters + (p * out_channels + k) * channels,
                            products + p * OWN_TILES * out + k, out, count, channels);
            for (int64_t t = 0; t < count; t++)
                tile_out(s, products + t * out, OWN_TILES * out, first + t, bias, residual, relu, output);
        }
    }
}
}
