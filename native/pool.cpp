#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace unspool {
namespace {

constexpr int kMost = 64;  // workers at the most

std::atomic<Team> lent{nullptr};

struct Job {
  void (*body)(void*, int64_t);
  void* context;
  int64_t items;
};

class Pool {
 public:
  // Runs the job, or returns false when another caller holds the pool.
  bool run(const Job& job, int threads, Stop& stop) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    if (Team team = lent.load()) {
      job_ = job;
      next_.store(0);
      pending_.store(job.items);
      Visit visit{*this, stop, std::this_thread::get_id()};
      team([](void* visit) { static_cast<Visit*>(visit)->run(); }, &visit, static_cast<unsigned>(threads), 0);
      return true;
    }
    while (workers_ < threads - 1 && workers_ < kMost) {
      try {
        std::thread([this, index = workers_] { work(index); }).detach();
      } catch (const std::system_error&) {
        break;  // no more threads to be had: fewer do the same work, to the same bits
      }
      ++workers_;
    }
    const int helpers = threads - 1 < workers_ ? threads - 1 : workers_;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      next_.store(0);
      pending_.store(helpers);
      helpers_ = helpers;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    take();
    // A helper that has not woken yet would find nothing left; wait for the others to finish.
    await(stop);
    return true;
  }

 private:
  // A lent team's job.  The caller waits for the others here, not in the team: here Ctrl-C is asked for.
  struct Visit {
    Pool& pool;
    Stop& stop;
    std::thread::id caller;
    void run() {
      pool.take(&pool.pending_);
      if (std::this_thread::get_id() == caller) pool.await(stop);
    }
  };

  void await(Stop& stop) {
    for (int spin = 0; pending_.load(std::memory_order_acquire) > 0; ++spin) {
      if (spin < 2000) {
        breathe();
      } else {
        stop.ask(stop);
        std::this_thread::yield();
      }
    }
  }

  void take(std::atomic<int64_t>* left = nullptr) {
    for (;;) {
      const int64_t item = next_.fetch_add(1);
      if (item >= job_.items) return;
      job_.body(job_.context, item);
      if (left != nullptr) left->fetch_sub(1, std::memory_order_release);
    }
  }

  void work(int index) {
    uint64_t seen = 0;
    for (;;) {
      // Layer calls follow one another closely in training: look for the next a moment before
      // sleeping.
      for (int spin = 0; spin < 400 && generation_.load() == seen; ++spin) breathe();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        if (index >= helpers_) continue;
      }
      take();
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_;   // held by the caller whose job runs
  std::mutex mutex_;  // guards job_, helpers_ and sleeping
  std::condition_variable wake_;
  Job job_{};
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> pending_{0};  // helpers at work; items not done, of a lent team
  std::atomic<uint64_t> generation_{0};
  int helpers_ = 0;
  int workers_ = 0;
};

// Never destroyed: detached workers may outlive main.  After a fork the child has none of the
// workers and locks in any state, so a fresh pool takes the old one's place.
alignas(Pool) unsigned char storage[sizeof(Pool)];
Pool* pool = nullptr;
std::once_flag once;

void renew() { pool = new (storage) Pool; }

void renew_in_child() {
  lent.store(nullptr);
  renew();
}

// Before a thread of whoever's is used: a child must not look for it after a fork.
void begin() {
  std::call_once(once, [] {
    renew();
    pthread_atfork(nullptr, nullptr, renew_in_child);
  });
}

}  // namespace

void lend(Team team) {
  begin();
  lent.store(team);
}

bool is_lent() { return lent.load() != nullptr; }

void parallel(int64_t items, int threads, void (*body)(void*, int64_t), void* context, Stop& stop) {
  if (threads > items) threads = static_cast<int>(items);
  if (threads > 1) {
    begin();
    if (pool->run(Job{body, context, items}, threads, stop)) return;
  }
  for (int64_t item = 0; item < items; ++item) body(context, item);
}

}  // namespace unspool
