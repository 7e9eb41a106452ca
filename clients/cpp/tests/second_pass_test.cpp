// Where `fast` is not sure, its prefill graph decides.
#include <algorithm>
#include <cmath>

#include "fastvlm.hpp"
#include "testing.hpp"

using nlohmann::json;
using testing::expect;

namespace {

constexpr double kAlways = 1e9, kNever = -1;
using Steps = std::vector<std::vector<float>>;

/// Logits of each step of an answer.
Steps logits_of_steps(const std::filesystem::path& package, const std::string& variant) {
  fastvlm::LoadOptions load_options;
  load_options.variant = variant;
  const fastvlm::Model model(package, load_options);
  Steps steps;
  fastvlm::GenerationOptions options;
  options.max_new_tokens = 8;
  options.on_logits = [&](const std::vector<float>& step) { steps.push_back(step); };
  fastvlm::Chat chat = model.chat();
  chat.ask("What can you do?", nullptr, options);
  return steps;
}

/// The largest difference of each step after the prompt's; the answers have to be the same.
std::vector<double> differences(const Steps& found, const Steps& expected) {
  std::vector<double> largest;
  for (std::size_t i = 1; i < std::min(found.size(), expected.size()); i++) {
    largest.push_back(0);
    for (std::size_t id = 0; id < found[i].size(); id++) {
      largest.back() =
          std::max(largest.back(), std::fabs(double{found[i][id]} - double{expected[i][id]}));
    }
  }
  return largest;
}

}  // namespace

int main() {
  const testing::Copy copy(testing::folder_of("FASTVLM_TEST_PACKAGE"));
  const json manifest = json::parse(copy.read("fastvlm.json"));
  if (!manifest["variants"].contains("fast") || !manifest["variants"].contains("int8")) {
    std::cout << "skipped: the package has no variants fast and int8\n";
    return testing::kSkipped;
  }
  const auto with_margin = [&](double margin) {
    copy.change_manifest(
        [&](json& changed) { changed["variants"]["fast"]["second_pass"]["margin"] = margin; });
    return logits_of_steps(copy.folder(), "fast");
  };
  // The prefill graph and int8 share their weights, but for a rounding in lm_head.
  const Steps int8 = logits_of_steps(copy.folder(), "int8");
  const auto always = differences(with_margin(kAlways), int8);
  const auto never = differences(with_margin(kNever), int8);
  expect(always.size() >= 4 && never.size() >= 4, "the answer has tokens");
  for (const double difference : always) {
    expect(difference < 0.15, "prefill decides: " + std::to_string(difference));
  }
  const double largest = never.empty() ? 0 : *std::max_element(never.begin(), never.end());
  expect(largest > 0.2, "the decoder decides: " + std::to_string(largest));
  return testing::finish();
}
