// fastvlm-cpp: ask about an image. The answer streams to stdout, and nothing else goes there.
//
// Exit codes are those of the fastvlm-onnx command: 0 done, 1 a fault of this program, 2 a fault of
// the caller, 130 interrupted.
#include <getopt.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "fastvlm.hpp"

namespace {

constexpr const char* kUsage =
    R"(Usage: fastvlm-cpp IMAGE PROMPT --model DIR [options]

Ask PROMPT about IMAGE, a JPEG or PNG file. The answer streams to stdout.

  --model DIR           an exported package
  --variant NAME        such as int4; the best for the CPU if left out
  --image-size N        side of the square input in pixels; the package's default if left out
  --threads N           threads of each graph; one for each physical core if left out
  --max-new-tokens N    the largest number of tokens in an answer (256)
  --temperature X       0 takes the most probable token (0)
  --top-k N             draw among this many of the most probable tokens; 0 is off (50)
  --top-p X             draw among the most probable tokens that reach this probability (1)
  --seed N              make a drawn answer repeatable
  --json                print one JSON object instead of the text
  --telemetry           let ONNX Runtime report to Microsoft, where its build does so
  --help                show this text
)";
constexpr int kCallersFault = 2;
constexpr int kInterrupted = 130;

volatile std::sig_atomic_t was_interrupted = 0;

struct Command {
  std::string image, prompt, model;
  fastvlm::LoadOptions load;
  fastvlm::GenerationOptions generation;
  bool as_json = false;
  bool shows_help = false;
};

template <class T>
T number_of(const char* option, const std::string& text) {
  T number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end) {
    throw fastvlm::InputError(std::string("--") + option + " is " + text +
                              "; expected a number in range.");
  }
  return number;
}

Command parse(int argc, char** argv) {
  const option options[] = {
      {"model", required_argument, nullptr, 0},
      {"variant", required_argument, nullptr, 0},
      {"image-size", required_argument, nullptr, 0},
      {"threads", required_argument, nullptr, 0},
      {"max-new-tokens", required_argument, nullptr, 0},
      {"temperature", required_argument, nullptr, 0},
      {"top-k", required_argument, nullptr, 0},
      {"top-p", required_argument, nullptr, 0},
      {"seed", required_argument, nullptr, 0},
      {"json", no_argument, nullptr, 0},
      {"telemetry", no_argument, nullptr, 0},
      {"help", no_argument, nullptr, 0},
      {nullptr, 0, nullptr, 0},
  };
  Command command;
  const std::string see = " See `fastvlm-cpp --help`.";
  opterr = 0;
  int index = 0;
  for (int found = 0; (found = getopt_long(argc, argv, ":h", options, &index)) != -1;) {
    if (found == 'h') {
      command.shows_help = true;
      return command;
    }
    if (found != 0) {
      throw fastvlm::InputError(std::string(argv[optind - 1]) +
                                (found == ':' ? " needs a value." : " is not an option.") + see);
    }
    const std::string name = options[index].name;
    const std::string value = optarg != nullptr ? optarg : "";
    if (name == "model") command.model = value;
    if (name == "variant") command.load.variant = value;
    if (name == "image-size") command.load.image_size = number_of<int>("image-size", value);
    if (name == "threads") command.load.threads = number_of<int>("threads", value);
    if (name == "max-new-tokens") {
      command.generation.max_new_tokens = number_of<int>("max-new-tokens", value);
    }
    if (name == "temperature") {
      command.generation.temperature = number_of<double>("temperature", value);
    }
    if (name == "top-k") command.generation.top_k = number_of<int>("top-k", value);
    if (name == "top-p") command.generation.top_p = number_of<double>("top-p", value);
    if (name == "seed") command.generation.seed = number_of<std::uint64_t>("seed", value);
    if (name == "json") command.as_json = true;
    if (name == "telemetry") command.load.telemetry = true;
    if (name == "help") {
      command.shows_help = true;
      return command;
    }
  }
  if (argc - optind != 2) {
    throw fastvlm::InputError("found " + std::to_string(argc - optind) +
                              " arguments, expected IMAGE and PROMPT." + see);
  }
  if (command.model.empty()) {
    throw fastvlm::InputError("--model is missing; give the folder of an exported package." + see);
  }
  command.image = argv[optind];
  command.prompt = argv[optind + 1];
  return command;
}

std::string json_of(const fastvlm::Generation& answer, const fastvlm::Model& model) {
  const fastvlm::Timings& timings = answer.timings;
  // The keys, and their order, are those of `fastvlm-onnx generate --json`.
  const nlohmann::ordered_json fields = {
      {"text", answer.text},
      {"token_ids", answer.token_ids},
      {"finish_reason", answer.finish_reason},
      {"prompt_tokens", answer.prompt_tokens},
      {"timings",
       {{"load", timings.load},
        {"preprocess", timings.preprocess},
        {"vision", timings.vision},
        {"prefill", timings.prefill},
        {"first_token", timings.first_token},
        {"decode", timings.decode},
        {"tokens_per_second", timings.tokens_per_second}}},
      {"model", model.name()},
      {"precision", model.variant()},
  };
  return fields.dump();
}

int run(int argc, char** argv) {
  const Command command = parse(argc, argv);
  if (command.shows_help) {
    std::cout << kUsage;
    return 0;
  }
  const fastvlm::Model model(command.model, command.load);
  const auto show = [&](std::string_view text) {
    if (!command.as_json) std::cout << text << std::flush;
    return was_interrupted == 0 && std::cout.good();
  };
  const fastvlm::Image image = fastvlm::read_image(command.image);
  const auto answer = model.generate(image, command.prompt, command.generation, show);
  if (was_interrupted != 0) {
    std::cerr << "\ninterrupted\n";
    return kInterrupted;
  }
  if (command.as_json) std::cout << json_of(answer, model);
  std::cout << std::endl;
  return std::cout.good() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, [](int) { was_interrupted = 1; });
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return run(argc, argv);
  } catch (const fastvlm::Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return kCallersFault;
  } catch (const std::bad_alloc&) {
    std::cerr << "error: out of memory; free some, or take a smaller variant or image size.\n";
    return kCallersFault;
  } catch (const std::exception& error) {
    std::cerr << "internal error: " << error.what() << "\n";
    return 1;
  }
}
