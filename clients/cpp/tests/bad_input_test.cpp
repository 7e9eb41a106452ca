// Damaged packages, pictures and prompts: each gives one line, of the right class, and exit code 2.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "fastvlm.hpp"
#include "testing.hpp"

namespace fs = std::filesystem;
using nlohmann::json;
using testing::Copy;
using testing::expect;

namespace {

/// Expect an error of exactly this class, in one line that has these words.
template <class Class>
void expect_error(const std::string& what, const std::string& words,
                  const std::function<void()>& act) {
  try {
    act();
    expect(false, what + ": no error");
  } catch (const Class& error) {
    const std::string message = error.what();
    expect(typeid(error) == typeid(Class), what + ": the error's class");
    expect(message.find('\n') == std::string::npos && message.find(words) != std::string::npos,
           what + ": the message is " + message);
  } catch (const std::exception& error) {
    expect(false, what + ": an error of another class: " + error.what());
  }
}

/// A context takes memory when it is used, so a manifest cannot ask for all of it.
void check_context_beyond_memory(const fs::path& package) {
  const Copy copy(package);
  copy.change_manifest([](json& changed) { changed["decoder"]["context_length"] = 2'147'483'647; });
  const fastvlm::Model model(copy.folder());
  fastvlm::GenerationOptions options;
  options.max_new_tokens = 2;
  const fastvlm::Image image = {1, 1, {1, 2, 3}};
  expect(!model.generate(image, "a", options).token_ids.empty(), "a context beyond memory");
}

/// Embeddings that are not numbers give such logits, which no order sorts.
void check_logits_that_are_not_numbers(const fs::path& package) {
  const Copy copy(package);
  const json manifest = json::parse(copy.read("fastvlm.json"));
  const std::string embeddings = manifest["variants"]["fp32"]["embed_tokens"];
  std::string content = copy.read(embeddings);
  std::fill(content.begin() + 128, content.end(), '\xff');
  copy.write_listed(embeddings, content);
  fastvlm::LoadOptions load;
  load.variant = "fp32";
  const fastvlm::Model model(copy.folder(), load);
  fastvlm::GenerationOptions options;
  options.temperature = 1;
  const fastvlm::Image image = {1, 1, {1, 2, 3}};
  expect_error<fastvlm::ProviderError>("logits that are not numbers", "are not numbers",
                                       [&] { model.generate(image, "a", options); });
}

void check_packages(const fs::path& package) {
  using fastvlm::InputError;
  using fastvlm::PackageError;
  // Each damage begins with a whole package.
  const auto refuse = [&](const std::string& what, const std::string& words,
                          const std::function<void(const Copy&)>& damage) {
    const Copy copy(package);
    damage(copy);
    expect_error<PackageError>(what, words, [&] { fastvlm::Model model(copy.folder()); });
  };
  const auto refuse_manifest = [&](const std::string& what, const std::string& words,
                                   const std::function<void(json&)>& change) {
    refuse(what, words, [&](const Copy& copy) { copy.change_manifest(change); });
  };
  const std::string variant = fastvlm::Model(package).variant();
  const json manifest = testing::read_json(package / "fastvlm.json");
  const std::string decoder = manifest["variants"][variant]["decoder"];
  const std::string weights = manifest["graphs"][decoder]["weights"][0];
  const std::string embeddings = manifest["variants"][variant]["embed_tokens"];
  const std::string projector = manifest["variants"][variant]["projector"];

  expect_error<PackageError>("no folder", "no exported package",
                             [] { fastvlm::Model model("/no/such/folder"); });
  refuse("a manifest that is cut", "cannot be read as JSON", [](const Copy& copy) {
    copy.write("fastvlm.json", copy.read("fastvlm.json").substr(0, 100));
  });
  refuse_manifest("another format", "format_version 3, expected 2",
                  [](json& changed) { changed["format_version"] = 3; });
  refuse_manifest("a missing key", "decoder.head_dim is missing",
                  [](json& changed) { changed["decoder"].erase("head_dim"); });
  refuse_manifest("a wrong type", "decoder.head_dim is \"64\", expected a number",
                  [](json& changed) { changed["decoder"]["head_dim"] = "64"; });
  refuse_manifest("a number beyond int", "expected a number",
                  [](json& changed) { changed["decoder"]["hidden_size"] = 5'000'000'000; });
  refuse_manifest("another resize", "image.resample is bilinear, expected bicubic",
                  [](json& changed) { changed["image"]["resample"] = "bilinear"; });
  refuse_manifest(
      "a name that leaves the folder", "leaves the package's folder",
      [](json& changed) { changed["files"]["../outside"] = {{"bytes", 1}, {"sha256", "00"}}; });
  refuse_manifest("a text with control characters", "image.resample is a?b?[31m, expected bicubic",
                  [](json& changed) { changed["image"]["resample"] = "a\nb\x1b[31m"; });
  refuse_manifest(
      "a version that is no version", "expected a version like 1.22", [&](json& changed) {
        changed["graphs"][projector]["onnxruntime"] = "1.22" + std::string(3'000'000, '9');
      });
  refuse_manifest("more layers than the decoder has", "has no input past_key_values.",
                  [](json& changed) { changed["decoder"]["num_hidden_layers"] = 2'147'483'647; });
  refuse_manifest("an image larger than the context", "and the context holds 8",
                  [](json& changed) { changed["decoder"]["context_length"] = 8; });
  refuse_manifest("a graph without facts", "not among its graphs",
                  [&](json& changed) { changed["graphs"].erase(projector); });
  refuse_manifest("weights that are not listed", "not among its files",
                  [&](json& changed) { changed["files"].erase(weights); });
  refuse("a missing graph", projector + ": missing",
         [&](const Copy& copy) { fs::remove(copy.folder() / projector); });
  refuse("a folder in the place of a file", "cannot be read", [&](const Copy& copy) {
    fs::remove(copy.folder() / projector);
    fs::create_directory(copy.folder() / projector);
  });
  for (const std::string& name : {projector, weights, embeddings, std::string("tokenizer.json")}) {
    refuse("an altered " + name, name + ": sha256 is", [&](const Copy& copy) {
      std::string content = copy.read(name);
      content[content.size() / 2] = static_cast<char>(content[content.size() / 2] ^ 1);
      copy.write(name, content);
    });
    refuse("a cut " + name, "the file was cut",
           [&](const Copy& copy) { copy.write(name, copy.read(name).substr(1)); });
  }
  refuse("another tokenizer", "not Qwen2's tokenizer", [](const Copy& copy) {
    json tokenizer = json::parse(copy.read("tokenizer.json"));
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\s+";
    copy.write_listed("tokenizer.json", tokenizer.dump());
  });
  refuse("a merge of unknown tokens", "not a tokenizer", [](const Copy& copy) {
    json tokenizer = json::parse(copy.read("tokenizer.json"));
    tokenizer["model"]["merges"].push_back({"no such", "token"});
    copy.write_listed("tokenizer.json", tokenizer.dump());
  });
  refuse("embeddings of another kind", "not a .npy file",
         [&](const Copy& copy) { copy.write_listed(embeddings, "PK and more than ten bytes"); });
  refuse("embeddings whose header is long", "is no matrix", [&](const Copy& copy) {
    const std::string header = "'descr':" + std::string(9'900, ' ');
    copy.write_listed(embeddings, std::string("\x93NUMPY\x01\x00\xb4\x26", 10) + header);
  });
  refuse("embeddings without their rows", "its header describes", [&](const Copy& copy) {
    copy.write_listed(embeddings, copy.read(embeddings).substr(0, 5000));
  });
  refuse("a graph that is none", "cannot load it",
         [&](const Copy& copy) { copy.write_listed(projector, "no graph"); });

  check_context_beyond_memory(package);
  check_logits_that_are_not_numbers(package);
  const Copy copy(package);
  copy.change_manifest([&](json& changed) {
    for (auto& graph : changed["graphs"]) graph["onnxruntime"] = "99.0";
  });
  expect_error<fastvlm::ProviderError>("an old ONNX Runtime", "needs at least 99.0",
                                       [&] { fastvlm::Model model(copy.folder()); });
  expect_error<InputError>("a variant that is not there", "has no int3 variant", [&] {
    fastvlm::LoadOptions options;
    options.variant = "int3";
    fastvlm::Model model(package, options);
  });
  expect_error<InputError>("an image size that is not there", "was not exported for 320", [&] {
    fastvlm::LoadOptions options;
    options.image_size = 320;
    fastvlm::Model model(package, options);
  });
}

void check_pictures(const fs::path& folder) {
  using fastvlm::InputError;
  const auto refuse = [](const std::string& what, const std::string& words,
                         const std::string& content) {
    expect_error<InputError>(what, words, [&] {
      fastvlm::decode_image(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
    });
  };
  const auto read = [&](const std::string& name) {
    std::ifstream file(folder / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  expect_error<InputError>("no picture", "no such picture",
                           [] { fastvlm::read_image("/no/such/picture.png"); });
  expect_error<InputError>("a folder", "cannot be read", [] { fastvlm::read_image("/"); });
  refuse("an empty file", "not a picture", "");
  refuse("a text", "not a picture", "no picture at all");
  refuse("a GIF", "not a picture in a known format; expected JPEG or PNG", "GIF89a............");
  const std::string png = read("shapes.png"), jpeg = read("shapes-wide.jpg");
  refuse("a PNG that is cut off", "cannot be decoded", png.substr(0, png.size() / 2));
  refuse("a JPEG that is cut off", "cannot be decoded", jpeg.substr(0, jpeg.size() / 2));
  refuse("a PNG's signature alone", "cannot be decoded", png.substr(0, 8));
  refuse("a JPEG's first bytes alone", "cannot be decoded", jpeg.substr(0, 4));
  std::string altered = png;
  altered[altered.size() / 2] = static_cast<char>(altered[altered.size() / 2] ^ 1);
  refuse("a PNG with a wrong byte", "cannot be decoded", altered);
  expect_error<InputError>("pixels that are missing", "expected width * height * 3",
                           [] { fastvlm::preprocess({4, 4, {1, 2, 3}}, 64); });
  expect_error<InputError>("no pixels", "expected at least one",
                           [] { fastvlm::preprocess({0, 0, {}}, 64); });
}

void check_questions(const fs::path& package, const fs::path& picture) {
  using fastvlm::InputError;
  const fastvlm::Model model(package);
  const fastvlm::Image image = fastvlm::read_image(picture);
  const auto refuse = [&](const std::string& what, const std::string& words,
                          const std::string& prompt, const fastvlm::GenerationOptions& options) {
    expect_error<InputError>(what, words, [&] { model.generate(image, prompt, options); });
  };
  refuse("an empty prompt", "the prompt is empty", "", {});
  refuse("a blank prompt", "the prompt is empty", " \n\xc2\xa0", {});
  refuse("a prompt that is no UTF-8", "not valid UTF-8 at byte 4", "abc\xff", {});
  fastvlm::GenerationOptions options;
  options.max_new_tokens = 0;
  refuse("no tokens", "max_new_tokens is 0; expected 1 or more", "a", options);
  options = {};
  options.temperature = -1;
  refuse("a negative temperature", "temperature is -1", "a", options);
  options = {};
  options.top_p = 0;
  refuse("no probability", "top_p is 0", "a", options);

  std::string long_prompt;
  for (int i = 0; i < 3000; i++) long_prompt += "1 ";
  expect_error<fastvlm::PromptTooLongError>("a long prompt", "shorten the prompt",
                                            [&] { model.generate(image, long_prompt); });
  // A conversation is as it was before an error.
  fastvlm::Chat chat = model.chat(), undisturbed = model.chat();
  chat.ask("What is this?", &image);
  undisturbed.ask("What is this?", &image);
  expect_error<fastvlm::PromptTooLongError>("a long question", "shorten the prompt",
                                            [&] { chat.ask(long_prompt); });
  expect(
      chat.ask("Describe the image.").token_ids == undisturbed.ask("Describe the image.").token_ids,
      "a refused question leaves the conversation as it was");
  int pieces = 0;
  const auto answer = model.generate(image, "Describe the image.", {},
                                     [&](std::string_view) { return ++pieces < 2; });
  expect(answer.finish_reason == "cancelled" && pieces == 2, "a caller ends an answer");
}

/// The exit code of a command line; stderr must be one line, and stdout empty.
void check_command(const std::string& program, const std::string& arguments, int expected) {
  const fs::path errors = fs::temp_directory_path() / ("fastvlm-" + std::to_string(::getpid()));
  const std::string command = "'" + program + "' " + arguments + " 2> '" + errors.string() + "'";
  std::FILE* output = ::popen(command.c_str(), "r");
  const bool is_silent = std::fgetc(output) == EOF;
  const int status = ::pclose(output);
  std::ifstream file(errors);
  const std::string message(std::istreambuf_iterator<char>(file), {});
  fs::remove(errors);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == expected, arguments + ": exit code");
  expect(is_silent, arguments + ": nothing on stdout");
  expect(message.rfind("error: ", 0) == 0 && message.find('\n') == message.size() - 1,
         arguments + ": one line on stderr, found " + message);
}

void check_commands(const std::string& program, const fs::path& package, const fs::path& picture) {
  const std::string model = "--model '" + package.string() + "'";
  const std::string image = "'" + picture.string() + "'";
  check_command(program, "", 2);
  check_command(program, image + " prompt", 2);
  check_command(program, image + " prompt --model /no/such/folder", 2);
  check_command(program, "/no/such/picture prompt " + model, 2);
  check_command(program, image + " '' " + model, 2);
  check_command(program, image + " \"$(printf '\\377')\" " + model, 2);
  check_command(program, image + " prompt --variant int3 " + model, 2);
  check_command(program, image + " prompt --max-new-tokens many " + model, 2);
  check_command(program, image + " prompt --no-such-option " + model, 2);
}

}  // namespace

int main(int, char** argv) {
  const auto package = testing::folder_of("FASTVLM_TEST_PACKAGE");
  const auto folder = testing::folder_of("FASTVLM_TEST_VECTORS");
  check_packages(package);
  check_pictures(folder);
  check_questions(package, folder / "shapes.png");
  check_commands(argv[1], package, folder / "shapes.png");
  return testing::finish();
}
