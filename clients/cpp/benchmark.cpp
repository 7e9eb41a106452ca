// Times and memory of answers, as one JSON object; benchmarks/clients.py runs it beside Python.
//
//   fastvlm-benchmark PACKAGE VARIANT PICTURE PROMPT MAX_NEW_TOKENS WARMUP REPEATS
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "fastvlm.hpp"

namespace {

/// Largest resident set of this process in bytes; Linux alone tells it here.
std::int64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string name; status >> name;) {
    std::int64_t kilobytes = 0;
    if (name == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) {
    std::cerr << "found " << argc - 1 << " arguments, expected 7\n";
    return 2;
  }
  fastvlm::LoadOptions options;
  options.variant = argv[2];
  const fastvlm::Model model(argv[1], options);
  fastvlm::GenerationOptions generation;
  generation.max_new_tokens = std::stoi(argv[5]);
  const int warmup = std::stoi(argv[6]), repeats = std::stoi(argv[7]);

  nlohmann::json found = {{"first_token", nlohmann::json::array()},
                          {"one_token", nlohmann::json::array()}};
  for (int i = 0; i < warmup + repeats; i++) {
    const auto began = std::chrono::steady_clock::now();
    const fastvlm::Image image = fastvlm::read_image(argv[3]);
    const std::chrono::duration<double> reading = std::chrono::steady_clock::now() - began;
    const auto answer = model.generate(image, argv[4], generation);
    found["load"] = answer.timings.load;
    found["token_ids"] = answer.token_ids;
    if (i < warmup) continue;
    found["first_token"].push_back(reading.count() + answer.timings.first_token);
    found["one_token"].push_back(1 / answer.timings.tokens_per_second);
  }
  found["peak_rss_bytes"] = peak_rss_bytes();
  std::cout << found << "\n";
}
