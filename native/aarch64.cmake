# Cross-compiles for 64-bit ARM under Linux, with Debian's g++-aarch64-linux-gnu: make neon.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
