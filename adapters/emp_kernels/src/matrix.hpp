// A sparse matrix in packed form: one bit for each element, and the nonzero values row by row.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "view.hpp"

namespace emp {

// Memory on a cache line.
template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t size) { grow(size); }
    Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    // At least `size` elements; what was there is lost.
    T* grow(size_t size) {
        if (size > size_) {
            ::operator delete(data_, std::align_val_t(64));
            data_ = nullptr, size_ = 0;
            data_ = static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)));
            size_ = size;
        }
        return data_;
    }
    T* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

// What is wrong with the shape of a packed matrix and the length of its mask, as the end of a sentence; "" if nothing is. Either side is bounded, also
// where the other is 0 and there is no mask to vouch for it.
std::string check_shape(int64_t rows, int64_t columns, size_t bytes);

// The owner of a View. What it is bound to must outlive it: values that come row by row are not copied, others are moved when they are first needed.
class Matrix {
  public:
    // `bits` holds rows * columns bits, row after row without gaps. Both arrays are read only within their sizes.
    // Returns "" or what is wrong with them, as the end of a sentence that begins with the name of the weight.
    std::string bind(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const float* values, size_t count);
    // The same from the transposed layout [columns, rows].
    std::string bind_transposed(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const float* values, size_t count);

    // Without values where these have to be moved.
    const View& view() const { return view_; }
    // With them; moved on the first call by one thread, and kept.
    const View& whole() const;
    // The values row by row: those that are there, or moved into `room`.
    const float* values(Buffer<float>& room) const;
    double density() const {
        return view_.rows && view_.columns ? double(view_.nonzeros) / double(view_.rows * view_.columns) : 0.0;
    }
    bool bit(int64_t row, int64_t column) const {
        return view_.mask[row * view_.mask_stride + column / 8] >> (column % 8) & 1;
    }
    // 64 bits of a row, from a column that is a multiple of 64; zero behind the last column.
    uint64_t bits(int64_t row, int64_t column) const;
    bool can_list() const { return view_.columns <= 65536; }
    // The view with its columns listed; made on the first call by one thread, and kept. Requires can_list().
    const View& listed() const;

  private:
    // Values that lie column by column.
    struct Source {
        const uint8_t* bits;
        size_t bytes;
        const float* values;
    };
    uint64_t read(int64_t row, int64_t column, int64_t end) const;  // its bits of rows up to `end`, at most 64
    void count_rows();
    void move_values(float* to) const;
    void find_tail(View&) const;
    View view_ = {};
    Source source_ = {};
    bool transposed_ = false;
    std::vector<uint64_t> offset_;
    Buffer<uint8_t> mask_;
    mutable Buffer<float> values_, tail_;
    mutable std::once_flag once_, moved_once_;
    mutable std::atomic<bool> moved_{false};
    mutable View whole_ = {};
    mutable View listed_ = {};
    mutable Buffer<uint16_t> column_;
};

}  // namespace emp
