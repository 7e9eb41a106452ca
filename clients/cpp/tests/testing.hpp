// Expectations, and hashes of results.
#pragma once

#include <openssl/evp.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace testing {

constexpr int kSkipped = 77;  // ctest's SKIP_RETURN_CODE
inline int expectations = 0;
inline int failures = 0;

/// Count an expectation, and print it where it fails.
inline bool expect(bool holds, const std::string& what) {
  expectations++;
  if (!holds) {
    failures++;
    std::cout << "FAILED: " << what << "\n";
  }
  return holds;
}

/// The test's exit code. A test that checked nothing has failed.
inline int finish() {
  std::cout << expectations << " expectations, " << failures << " failed\n";
  return failures == 0 && expectations > 0 ? 0 : 1;
}

/// The folder that an environment variable names; the test is skipped without it.
inline std::filesystem::path folder_of(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr || *value == '\0') {
    std::cout << "skipped: " << variable << " is not set\n";
    std::exit(kSkipped);
  }
  return value;
}

inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

template <class T>
std::string sha256_of(const std::vector<T>& values) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(values.data(), values.size() * sizeof(T), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned int i = 0; i < size; i++) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", digest[i]);
    hex += digits;
  }
  return hex;
}

inline std::vector<std::uint8_t> base64_decoded(const std::string& text) {
  std::vector<std::uint8_t> bytes(text.size() / 4 * 3);
  EVP_DecodeBlock(bytes.data(), reinterpret_cast<const unsigned char*>(text.data()),
                  static_cast<int>(text.size()));
  const std::size_t end = text.find_last_not_of('=') + 1;
  bytes.resize(bytes.size() - (text.size() - end));
  return bytes;
}

/// A copy of the package that a test may damage.
class Copy {
 public:
  explicit Copy(const std::filesystem::path& package)
      : folder_(std::filesystem::temp_directory_path() /
                ("fastvlm-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(folder_);
    std::filesystem::copy(package, folder_, std::filesystem::copy_options::recursive);
  }
  ~Copy() { std::filesystem::remove_all(folder_); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  const std::filesystem::path& folder() const { return folder_; }

  std::string read(const std::string& name) const {
    std::ifstream file(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  /// Write a file, and its size and hash into the manifest.
  void write_listed(const std::string& name, const std::string& content) const {
    write(name, content);
    nlohmann::json manifest = nlohmann::json::parse(read("fastvlm.json"));
    const std::vector<char> bytes(content.begin(), content.end());
    manifest["files"][name] = {{"bytes", bytes.size()}, {"sha256", sha256_of(bytes)}};
    write("fastvlm.json", manifest.dump());
  }
  void change_manifest(const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json manifest = nlohmann::json::parse(read("fastvlm.json"));
    change(manifest);
    write("fastvlm.json", manifest.dump());
  }

 private:
  std::filesystem::path folder_;
};

}  // namespace testing
