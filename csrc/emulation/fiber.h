// Fibers: functions that switch to each other midway, each on its own stack. Every CUDA thread of an emulated block is a
// fiber. swapcontext makes two system calls per switch, so x86-64 has its own switch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace sskd_fast::emulation {

#if defined(__x86_64__)
// Saves the callee-saved registers on the caller's stack, stores the stack pointer in *save, and switches to `to`.
[[gnu::naked, gnu::noinline, gnu::no_sanitize("address", "undefined")]] inline void switch_stack(void** /*save*/,
                                                                                               void* /*to*/) {
  asm volatile(
      "pushq %rbp\n\t pushq %rbx\n\t pushq %r12\n\t pushq %r13\n\t pushq %r14\n\t pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t movq %rsi, %rsp\n\t"
      "popq %r15\n\t popq %r14\n\t popq %r13\n\t popq %r12\n\t popq %rbx\n\t popq %rbp\n\t"
      "ret");
}
#endif

// A point where execution can stop and resume: the stack of a fiber, or of the thread that runs the fibers.
struct Context {
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#if defined(__x86_64__)
  void* top = nullptr;
#else
  ucontext_t state;
#endif
};

// Switches to `to`; returns once something switches back to `from`. from_ends: nothing will.
inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(__x86_64__)
  switch_stack(&from.top, to.top);
#else
  swapcontext(&from.state, &to.state);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// A stack and the function that runs on it. The page below the stack is not writable, so an overflow is detected.
class Fiber {
 public:
  Fiber() {
    void* pages = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    mprotect(pages, kGuard, PROT_NONE);
    own_.bottom = static_cast<char*>(pages) + kGuard;
    own_.size = kStack;
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { munmap(const_cast<char*>(bottom()) - kGuard, kGuard + kStack); }

  // The next resume() enters `body`, which must end with finish(). Discards the content of the stack.
  void start(void (*body)()) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bottom(), kStack);
#endif
    body_ = body;
#if defined(__x86_64__)
    // As after a call: a return address that nobody uses, the function to return into, and six registers.
    void** stack = reinterpret_cast<void**>(const_cast<char*>(bottom()) + kStack);
    *--stack = nullptr;
    *--stack = reinterpret_cast<void*>(&enter);
    for (int i = 0; i < 6; ++i) *--stack = nullptr;
    own_.top = stack;
#else
    getcontext(&own_.state);
    own_.state.uc_stack.ss_sp = const_cast<char*>(bottom());
    own_.state.uc_stack.ss_size = kStack;
    own_.state.uc_link = nullptr;
    makecontext(&own_.state, &enter, 0);
#endif
  }

  // Runs the fiber until it calls suspend() or finish().
  void resume() {
    running_ = this;
    switch_context(scheduler_, own_, false);
  }
  void suspend() { switch_context(own_, scheduler_, false); }
  [[noreturn]] void finish() {
    switch_context(own_, scheduler_, true);
    __builtin_unreachable();
  }

 private:
  static constexpr size_t kGuard = 1 << 16;  // a page, however large pages are
  static constexpr size_t kStack = 1 << 18;

  const char* bottom() const { return static_cast<const char*>(own_.bottom); }

  static void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_.bottom, &scheduler_.size);
#endif
    running_->body_();
    running_->finish();
  }

  static inline Context scheduler_;
  static inline Fiber* running_ = nullptr;
  Context own_;
  void (*body_)() = nullptr;
};

}  // namespace sskd_fast::emulation
