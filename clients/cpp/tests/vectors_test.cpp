// Compares pixels, token ids and answers with those that Python's runtime wrote in vectors.json.
#include <optional>

#include "fastvlm.hpp"
#include "testing.hpp"

using nlohmann::json;
using testing::expect;

namespace {

void check_texts(const fastvlm::Tokenizer& tokenizer, const json& texts) {
  for (const json& text : texts) {
    const auto content = text["text"].get<std::string>();
    expect(tokenizer.encode(content) == text["ids"], "ids of " + text["text"].dump(-1, ' ', true) +
                                                         ": " +
                                                         json(tokenizer.encode(content)).dump());
    expect(tokenizer.encode_template(content) == text["template_ids"],
           "template ids of " + text["text"].dump(-1, ' ', true));
    expect(tokenizer.decode(text["ids"]) == text["decoded"],
           "text of the ids of " + text["text"].dump(-1, ' ', true));
  }
}

void check_decoded(const fastvlm::Tokenizer& tokenizer, const json& decoded) {
  for (const json& one : decoded) {
    expect(tokenizer.decode(one["ids"]) == one["text"], "text of ids " + one["ids"].dump());
  }
}

void check_pictures(const std::filesystem::path& folder, const json& pictures) {
  for (const json& picture : pictures) {
    const std::string file = picture["file"];
    try {
      const fastvlm::Image image = fastvlm::read_image(folder / file);
      expect(testing::sha256_of(image.rgb) == picture["rgb_sha256"], file + ": decoded pixels");
      for (const auto& [size, hash] : picture["pixel_values_sha256"].items()) {
        expect(testing::sha256_of(fastvlm::preprocess(image, std::stoi(size))) == hash,
               file + ": pixel_values at " + size);
      }
    } catch (const fastvlm::Error& error) {
      expect(false, file + ": " + error.what());
    }
  }
}

void check_answers(const std::filesystem::path& package, const std::filesystem::path& folder,
                   const json& variants) {
  for (const auto& [variant, answers] : variants.items()) {
    fastvlm::LoadOptions options;
    options.variant = variant;
    const fastvlm::Model model(package, options);
    std::size_t equal = 0;
    for (const json& golden : answers) {
      const auto image = fastvlm::read_image(folder / golden["picture"].get<std::string>());
      const auto prompt = golden["prompt"].get<std::string>();
      std::string streamed;
      const auto answer = model.generate(image, prompt, {}, [&](std::string_view text) {
        streamed += text;
        return true;
      });
      const std::string where = variant + ", " + golden["picture"].dump() + ", " + prompt;
      const bool same = answer.token_ids == golden["token_ids"] && answer.text == golden["text"] &&
                        answer.finish_reason == golden["finish_reason"] &&
                        answer.prompt_tokens == golden["prompt_tokens"];
      expect(same, where + ": the answer is " + answer.text);
      expect(streamed == answer.text, where + ": streamed text");
      equal += same ? 1 : 0;
    }
    std::cout << variant << ": " << equal << " of " << answers.size()
              << " answers equal Python's\n";
  }
}

/// A conversation whose answers are cut: the last token of an answer begins the next run.
void check_chat(const std::filesystem::path& package, const std::filesystem::path& folder,
                const json& golden) {
  fastvlm::LoadOptions options;
  options.variant = golden["variant"];
  const fastvlm::Model model(package, options);
  fastvlm::Chat chat = model.chat();
  for (const json& turn : golden["turns"]) {
    std::optional<fastvlm::Image> image;
    if (!turn["picture"].is_null()) {
      image = fastvlm::read_image(folder / turn["picture"].get<std::string>());
    }
    fastvlm::GenerationOptions generation;
    generation.max_new_tokens = golden["max_new_tokens"];
    const auto prompt = turn["prompt"].get<std::string>();
    const auto answer = chat.ask(prompt, image ? &*image : nullptr, generation);
    expect(answer.token_ids == turn["token_ids"] && answer.prompt_tokens == turn["prompt_tokens"] &&
               answer.finish_reason == turn["finish_reason"],
           "chat, " + prompt + ": the answer is " + answer.text);
  }
}

/// A seed repeats its answer; a temperature near 0 gives the greedy answer.
void check_sampling(const std::filesystem::path& package, const std::filesystem::path& folder,
                    const json& golden) {
  const fastvlm::Model model(package);
  const auto image = fastvlm::read_image(folder / golden["picture"].get<std::string>());
  const auto features = model.encode_image(image);
  const auto prompt = golden["prompt"].get<std::string>();
  const auto ask = [&](double temperature, std::uint64_t seed, int top_k, double top_p) {
    fastvlm::GenerationOptions options;
    options.temperature = temperature;
    options.seed = seed;
    options.top_k = top_k;
    options.top_p = top_p;
    options.max_new_tokens = 16;
    return model.generate(features, prompt, options).token_ids;
  };
  const auto greedy = ask(0, 0, 50, 1);
  expect(ask(3, 1, 50, 1) == ask(3, 1, 50, 1), "a seed repeats its answer");
  expect(ask(3, 1, 0, 1) != ask(3, 2, 0, 1), "another seed draws another answer");
  expect(ask(1e-6, 1, 50, 1) == greedy, "a temperature near 0 is greedy");
  expect(ask(3, 1, 1, 1) == greedy, "top_k 1 is greedy");
  expect(ask(3, 1, 0, 1e-9) == greedy, "top_p near 0 is greedy");
}

}  // namespace

int main() {
  const auto package = testing::folder_of("FASTVLM_TEST_PACKAGE");
  const auto folder = testing::folder_of("FASTVLM_TEST_VECTORS");
  const json vectors = testing::read_json(folder / "vectors.json");
  const fastvlm::Tokenizer tokenizer(package / "tokenizer.json");
  check_texts(tokenizer, vectors["texts"]);
  check_decoded(tokenizer, vectors["decoded"]);
  check_pictures(folder, vectors["pictures"]);
  check_answers(package, folder, vectors["answers"]);
  check_chat(package, folder, vectors["chat"]);
  check_sampling(package, folder, vectors["answers"].begin().value().at(0));
  return testing::finish();
}
