//! The allocator of the whole process: jemalloc, for librdkafka's C as well as for Rust.
//!
//! A proxy has some 30 threads, of which most allocate what another one frees, and memory that it needs for a moment only: for bodies, for connections that come all at once.
//! glibc's allocator gives each thread an arena, and gives back to the system only what lies at an arena's end. jemalloc gives back what was not used for a while, wherever it lies.
//!
//! How: `.cargo/config.toml` says it at build time; the environment variable `MALLOC_CONF` at run time.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
