# Defines onnxruntime::onnxruntime from ONNXRUNTIME_ROOT, or from a release of Microsoft's.
#
# The library that is linked is named libonnxruntime.so.1 (its SONAME), so any later 1.x can take its
# place when the program runs.

set(onnxruntime_version 1.23.2)
set(onnxruntime_sha256_linux-x64 1fa4dcaef22f6f7d5cd81b28c2800414350c10116f5fdd46a2160082551c5f9b)
set(onnxruntime_sha256_linux-aarch64 7c63c73560ed76b1fac6cff8204ffe34fe180e70d6582b5332ec094810241e5c)
set(onnxruntime_sha256_osx-arm64 b4d513ab2b26f088c66891dbbc1408166708773d7cc4163de7bdca0e9bbb7856)
set(onnxruntime_sha256_osx-x86_64 d10359e16347b57d9959f7e80a225a5b4a66ed7d7e007274a15cae86836485a6)

set(onnxruntime_folder "${ONNXRUNTIME_ROOT}")
if(NOT onnxruntime_folder)
  if(APPLE)
    set(onnxruntime_platform osx-${CMAKE_SYSTEM_PROCESSOR})
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(onnxruntime_platform linux-x64)
  else()
    set(onnxruntime_platform linux-${CMAKE_SYSTEM_PROCESSOR})
  endif()
  if(NOT DEFINED onnxruntime_sha256_${onnxruntime_platform})
    message(FATAL_ERROR "ONNX Runtime has no release for ${onnxruntime_platform}; "
                        "set ONNXRUNTIME_ROOT to a folder with include/ and lib/.")
  endif()
  set(onnxruntime_archive onnxruntime-${onnxruntime_platform}-${onnxruntime_version})
  include(FetchContent)
  FetchContent_Declare(onnxruntime
    URL https://github.com/microsoft/onnxruntime/releases/download/v${onnxruntime_version}/${onnxruntime_archive}.tgz
    URL_HASH SHA256=${onnxruntime_sha256_${onnxruntime_platform}})
  FetchContent_MakeAvailable(onnxruntime)
  set(onnxruntime_folder "${onnxruntime_SOURCE_DIR}")
endif()

# Found anew each time, so that another ONNXRUNTIME_ROOT takes effect.
unset(ONNXRUNTIME_INCLUDE CACHE)
unset(ONNXRUNTIME_LIBRARY CACHE)
find_path(ONNXRUNTIME_INCLUDE onnxruntime_c_api.h
  PATHS "${onnxruntime_folder}"
  PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session
  NO_DEFAULT_PATH)
find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime libonnxruntime.so.1
  PATHS "${onnxruntime_folder}"
  PATH_SUFFIXES lib lib64
  NO_DEFAULT_PATH)
if(NOT ONNXRUNTIME_INCLUDE OR NOT ONNXRUNTIME_LIBRARY)
  message(FATAL_ERROR "${onnxruntime_folder} has no onnxruntime_c_api.h or no libonnxruntime; "
                      "set ONNXRUNTIME_ROOT to a folder with include/ and lib/.")
endif()

add_library(onnxruntime::onnxruntime UNKNOWN IMPORTED)
set_target_properties(onnxruntime::onnxruntime PROPERTIES
  IMPORTED_LOCATION "${ONNXRUNTIME_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE}")
