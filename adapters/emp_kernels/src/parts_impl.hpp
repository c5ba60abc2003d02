// The body of a vector of floats that has no instruction for parts of itself, lane by lane. Included in a struct that says `Self`, `kOwn` lanes,
// `load` and `store`.

// The first `count` of them; the others are 0, or stay as they were.
static Self load_part(const float* p, int count) {
    alignas(64) float lane[kOwn] = {};
    for (int i = 0; i < count; i++) lane[i] = p[i];
    return load(lane);
}
void store_part(float* p, int count) const {
    alignas(64) float lane[kOwn];
    store(lane);
    for (int i = 0; i < count; i++) p[i] = lane[i];
}
// p[0], p[2], ..., `count` of them.
static Self load_even(const float* p, int count) {
    alignas(64) float lane[kOwn] = {};
    for (int i = 0; i < count; i++) lane[i] = p[2 * i];
    return load(lane);
}
// p[lane] in the lanes whose bits are set, `other` elsewhere; nothing else is read.
static Self load_over(const float* p, unsigned lanes, Self other) {
    alignas(64) float lane[kOwn];
    other.store(lane);
    for (int i = 0; i < kOwn; i++)
        if (lanes >> i & 1) lane[i] = p[i];
    return load(lane);
}
// The same back: only the chosen lanes are written.
void store_over(float* p, unsigned lanes) const {
    alignas(64) float lane[kOwn];
    store(lane);
    for (int i = 0; i < kOwn; i++)
        if (lanes >> i & 1) p[i] = lane[i];
}
// p[2 * lane] and p[2 * lane + 1] where the bit of that number is set, 0 elsewhere; nothing else is read.
static void load_apart(const float* p, uint32_t chosen, Self& even, Self& odd) {
    alignas(64) float lane[2][kOwn];
    if (chosen == uint32_t((uint64_t(1) << 2 * kOwn) - 1))
        for (int i = 0; i < kOwn; i++) lane[0][i] = p[2 * i], lane[1][i] = p[2 * i + 1];
    else
        for (int i = 0; i < 2 * kOwn; i++) lane[i % 2][i / 2] = chosen >> i & 1 ? p[i] : 0.0f;
    even = load(lane[0]), odd = load(lane[1]);
}
