// Runs a package's golden.json: pixels, token ids, features, logits and answers of each variant.
#include <cmath>
#include <map>

#include "fastvlm.hpp"
#include "testing.hpp"

using nlohmann::json;
using testing::expect;

namespace {

std::map<std::string, fastvlm::Image> check_pictures(const json& pictures) {
  std::map<std::string, fastvlm::Image> images;
  for (const auto& [name, golden] : pictures.items()) {
    const auto file = testing::base64_decoded(golden["file"]);
    const fastvlm::Image image = fastvlm::decode_image(file.data(), file.size(), name);
    expect(image.width == golden["width"] && image.height == golden["height"], name + ": size");
    expect(testing::sha256_of(image.rgb) == golden["rgb_sha256"], name + ": decoded pixels");
    for (const auto& [size, hash] : golden["pixel_values_sha256"].items()) {
      expect(testing::sha256_of(fastvlm::preprocess(image, std::stoi(size))) == hash,
             name + ": pixel_values at " + size);
    }
    images[name] = image;
  }
  return images;
}

void check_features(const fastvlm::ImageFeatures& features, const json& golden, double tolerance,
                    const std::string& where) {
  const auto& rows = features.rows;
  double sum = 0, squares = 0;
  for (const float value : rows) sum += value;
  const double mean = sum / static_cast<double>(rows.size());
  for (const float value : rows) squares += (value - mean) * (value - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(rows.size()));
  const double limit = tolerance * golden["std"].get<double>();
  expect(std::fabs(mean - golden["mean"].get<double>()) <= limit, where + ": features' mean");
  expect(std::fabs(deviation - golden["std"].get<double>()) <= limit, where + ": features' std");
  for (std::size_t i = 0; i < golden["samples"].size(); i++) {
    const std::size_t at = i * (rows.size() - 1) / 15;
    expect(std::fabs(rows[at] - golden["samples"][i].get<double>()) <= limit,
           where + ": feature " + std::to_string(at));
  }
}

void check_logits(const std::vector<std::vector<float>>& logits, const json& golden,
                  double tolerance, const std::string& where) {
  for (const json& step : golden) {
    const auto number = step["step"].get<std::size_t>();
    if (!expect(number < logits.size(), where + ": has step " + std::to_string(number))) continue;
    for (const json& top : step["top"]) {
      const float found = logits[number][top["id"].get<std::size_t>()];
      const double limit = tolerance * step["std"].get<double>();
      expect(std::fabs(found - top["logit"].get<double>()) <= limit,
             where + ": logit of token " + top["id"].dump() + " at step " + std::to_string(number) +
                 " is " + std::to_string(found) + ", expected " + top["logit"].dump());
    }
  }
}

/// Ask the turns of a conversation.
void check_conversation(const fastvlm::Model& model, const json& turns, const json& answers,
                        const std::map<std::string, fastvlm::Image>& images, int max_new_tokens,
                        double tolerance, const std::string& where) {
  fastvlm::Chat chat = model.chat();
  for (std::size_t i = 0; i < answers.size(); i++) {
    const json& turn = turns[i];
    const json& golden = answers[i];
    const std::string here = where + ", turn " + std::to_string(i + 1);
    std::vector<std::vector<float>> logits;
    fastvlm::GenerationOptions options;
    options.max_new_tokens = max_new_tokens;
    options.on_logits = [&](const std::vector<float>& step) { logits.push_back(step); };
    const fastvlm::Image* image =
        turn["picture"].is_null() ? nullptr : &images.at(turn["picture"].get<std::string>());
    const auto prompt = turn["prompt"].get<std::string>();
    const auto answer = chat.ask(prompt, image, options);

    check_logits(logits, golden["logits"], tolerance, here);
    const auto tokens = golden["token_ids"].get<std::vector<fastvlm::TokenId>>();
    const auto compared = golden["compared_tokens"].get<std::size_t>();
    bool is_equal = answer.token_ids.size() >= compared;
    for (std::size_t t = 0; is_equal && t < compared; t++) {
      is_equal = answer.token_ids[t] == tokens[t];
    }
    expect(is_equal, here + ": tokens");
    if (!golden["compares_text"].get<bool>()) return;  // later turns depend on this answer
    expect(answer.token_ids == tokens, here + ": all tokens");
    expect(answer.text == golden["text"], here + ": the text is " + answer.text);
    expect(answer.finish_reason == golden["finish_reason"], here + ": finish_reason");
  }
}

}  // namespace

int main() {
  const auto package = testing::folder_of("FASTVLM_TEST_PACKAGE");
  if (!std::filesystem::exists(package / "golden.json")) {
    std::cout << "skipped: " << package << " has no golden.json\n";
    return testing::kSkipped;
  }
  const json golden = testing::read_json(package / "golden.json");
  expect(golden["golden_version"] == 1, "golden_version is 1");
  const auto images = check_pictures(golden["pictures"]);
  const fastvlm::Tokenizer tokenizer(package / "tokenizer.json");
  for (const json& text : golden["texts"]) {
    expect(tokenizer.encode(text["text"].get<std::string>()) == text["ids"],
           "ids of " + text["text"].dump());
  }
  for (const auto& [variant, values] : golden["variants"].items()) {
    fastvlm::LoadOptions options;
    options.variant = variant;
    options.image_size = values["image_size"];
    const fastvlm::Model model(package, options);
    for (const auto& [picture, features] : values["image_features"].items()) {
      check_features(model.encode_image(images.at(picture)), features,
                     values["tolerance"]["image_features"], variant + ", " + picture);
    }
    for (const auto& [name, answers] : values["answers"].items()) {
      check_conversation(model, golden["conversations"][name], answers, images,
                         golden["max_new_tokens"], values["tolerance"]["logits"],
                         variant + ", conversation " + name);
    }
  }
  return testing::finish();
}
