# How llama.cpp is compiled into the wheel of llama-cpp-python that the eval image and the virtual environments share.
# CMake reads it at the start of llama.cpp's own project (CMAKE_PROJECT_llama.cpp_INCLUDE).

# The parsers of chats and command lines are half of the compile time, and unused. llama-cpp-python forces the cache
# variable, so only a variable of this scope switches them off.
set(LLAMA_BUILD_COMMON OFF)

# The wheel brings OpenMP's library, because slim images have none. ggml's own threads wait without ever sleeping:
# beside any other work they are ten times slower.
find_package(OpenMP REQUIRED)
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libgomp.so
                OUTPUT_VARIABLE gomp OUTPUT_STRIP_TRAILING_WHITESPACE)
file(REAL_PATH ${gomp} gomp)
install(FILES ${gomp} DESTINATION ${SKBUILD_PLATLIB_DIR}/llama_cpp/lib RENAME libgomp.so.1)

# One build for every CPU of the last ten years, never GGML_NATIVE and never AMX: some virtual machines advertise AMX
# and die of an illegal instruction.
set(GGML_NATIVE OFF)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
    foreach(set_of_instructions SSE42 AVX AVX2 BMI2 FMA F16C) # x86-64-v3
        set(GGML_${set_of_instructions} ON)
        list(APPEND portable -DGGML_${set_of_instructions}:BOOL=ON)
    endforeach()
    # The kernels once more with AVX-512, where the dynamic linker prefers them on a CPU of x86-64-v4.
    include(ExternalProject)
    ExternalProject_Add(ggml_x86_64_v4
        SOURCE_DIR ${CMAKE_CURRENT_SOURCE_DIR}
        BINARY_DIR ${CMAKE_CURRENT_BINARY_DIR}/ggml-x86-64-v4
        CMAKE_CACHE_ARGS ${portable} -DGGML_AVX512:BOOL=ON -DGGML_NATIVE:BOOL=OFF -DBUILD_SHARED_LIBS:BOOL=ON
            -DLLAMA_BUILD_COMMON:BOOL=OFF -DLLAMA_CURL:BOOL=OFF -DCMAKE_BUILD_TYPE:STRING=Release
            -DCMAKE_BUILD_WITH_INSTALL_RPATH:BOOL=ON -DCMAKE_INSTALL_RPATH:STRING=$ORIGIN/../..
        BUILD_COMMAND ${CMAKE_COMMAND} --build <BINARY_DIR> --target ggml-cpu
        INSTALL_COMMAND ${CMAKE_COMMAND} -E copy <BINARY_DIR>/bin/libggml-cpu.so.0 <BINARY_DIR>/libggml-cpu.so.0) # no link
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/ggml-x86-64-v4/libggml-cpu.so.0
            DESTINATION ${SKBUILD_PLATLIB_DIR}/llama_cpp/lib/glibc-hwcaps/x86-64-v4)
elseif(CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    set(GGML_CPU_ARM_ARCH armv8.2-a+dotprod) # Graviton 2, Raspberry Pi 5 and every Apple chip
endif()
