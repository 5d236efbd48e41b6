// A few threads that share out numbered items of work.
//
// torch's own threads cannot be used without its headers, and a second OpenMP runtime in the
// process would leave its threads spinning on the cores of the first.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tdpipe {

class Threads {
  public:
    // Calls `work(item)` once for each item below `count`, on up to `threads` threads, this one
    // among them. One call at a time.
    void run(int threads, int64_t count, const std::function<void(int64_t)> &work) {
        if (threads < 2 || count < 2) {
            for (int64_t item = 0; item < count; item++) work(item);
            return;
        }
        while ((int)helpers_.size() < threads - 1) {
            uint64_t seen = round_;
            helpers_.emplace_back([this, seen] { help(seen); });
            helpers_.back().detach();  // they live as long as the process
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            count_ = count;
            next_ = 0;
            busy_ = (int)helpers_.size();
            round_++;
        }
        begin_.notify_all();
        take();
        std::unique_lock<std::mutex> lock(mutex_);
        end_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void take() {
        for (int64_t item = next_++; item < count_; item = next_++) (*work_)(item);
    }

    void help(uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            begin_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            lock.unlock();
            take();
            lock.lock();
            if (--busy_ == 0) end_.notify_one();
        }
    }

    std::vector<std::thread> helpers_;
    std::mutex mutex_;
    std::condition_variable begin_, end_;
    const std::function<void(int64_t)> *work_ = nullptr;
    std::atomic<int64_t> next_{0};
    int64_t count_ = 0;
    uint64_t round_ = 0;
    int busy_ = 0;
};

// Never destroyed: its threads may still wait when the process ends.
inline Threads &shared_threads() {
    static Threads *threads = new Threads;
    return *threads;
}

// Memory of this thread that is kept between calls.
inline float *scratch(int slot, int64_t floats) {
    thread_local std::vector<float> buffers[8];
    auto &buffer = buffers[slot];
    if ((int64_t)buffer.size() < floats) buffer.resize(floats);
    return buffer.data();
}

}  // namespace tdpipe
