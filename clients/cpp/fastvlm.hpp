// FastVLM from a fastvlm-onnx package, on ONNX Runtime's C API: an image and a prompt in, text out.
//
// fastvlm.cpp is the one source file. It follows docs/format.md, and gives the pixel_values and the
// token ids of the Python runtime bit for bit. Paths are UTF-8, and so is all text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fastvlm {

// --- errors -------------------------------------------------------------------------------------
// A message is one line: the value found, the value expected, the thing to do.

/// Root of all errors that are thrown on purpose.
struct Error : std::runtime_error {
  /// Control characters of the message become question marks, and a long message is shortened.
  explicit Error(const std::string& message);
};
/// A package is missing, incomplete, altered, or of an unknown format.
struct PackageError : Error {
  using Error::Error;
};
/// A picture, a prompt or an option cannot be used.
struct InputError : Error {
  using Error::Error;
};
/// The prompt, with its image tokens, leaves no room in the model's context.
struct PromptTooLongError : InputError {
  using InputError::InputError;
};
/// ONNX Runtime is too old, or failed while it ran a graph.
struct ProviderError : Error {
  using Error::Error;
};

// --- images -------------------------------------------------------------------------------------

/// A decoded image: uint8 [height, width, 3] in RGB order.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
};

/// Decode a JPEG or a PNG to RGB. Alpha is dropped, and EXIF rotation is ignored.
///
/// Throws InputError: the data are of no such format, are cut off, or hold too large an image.
/// @param name  names the picture in messages.
Image decode_image(const std::uint8_t* data, std::size_t size,
                   const std::string& name = "the picture");

/// Read a JPEG or PNG file; see decode_image.
Image read_image(const std::filesystem::path& path);

/// Pad an image to a black square and resize it with Pillow's bicubic filter.
///
/// Throws InputError: `rgb` does not hold width * height pixels, or the image is too large.
/// Returns uint8 [image_size, image_size, 3].
std::vector<std::uint8_t> resize(const Image& image, int image_size);

/// The vision encoder's input: `resize`, then a division by 255.
///
/// Returns float32 [1, 3, image_size, image_size].
std::vector<float> preprocess(const Image& image, int image_size);

// --- text ---------------------------------------------------------------------------------------

using TokenId = std::int64_t;

/// A package's tokenizer.json: Qwen2's byte-level BPE.
class Tokenizer {
 public:
  /// Throws PackageError: the file is missing, or is another kind of tokenizer.
  explicit Tokenizer(const std::filesystem::path& path);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Token ids of a text in which special tokens are characters.
  ///
  /// Throws InputError: the text is not valid UTF-8.
  std::vector<TokenId> encode(std::string_view text) const;

  /// Token ids of a template, in which special tokens are tokens.
  std::vector<TokenId> encode_template(std::string_view text) const;

  /// The bytes of a token; empty for a special token. A character can span several tokens.
  std::string bytes_of(TokenId id) const;

  /// Text of token ids; incomplete characters become U+FFFD.
  std::string decode(const std::vector<TokenId>& ids) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// --- the model ----------------------------------------------------------------------------------

struct LoadOptions {
  std::string variant;     ///< such as "int4"; the best for the CPU when empty
  int image_size = 0;      ///< side of the square input in pixels; the package's default when 0
  int threads = 0;         ///< threads of each graph; one for each physical core when 0
  bool telemetry = false;  ///< let ONNX Runtime report to Microsoft, where its build does so
};

/// Takes the logits of each position before its token is drawn, float32 [vocab_size].
using OnLogits = std::function<void(const std::vector<float>&)>;

struct GenerationOptions {
  int max_new_tokens = 256;  ///< the most tokens of an answer; a full context ends it sooner
  double temperature = 0.0;  ///< 0 takes the most probable token
  int top_k = 50;            ///< draw among this many of the most probable; 0 is off
  double top_p = 1.0;        ///< draw among the most probable that reach this probability
  std::optional<std::uint64_t> seed;  ///< makes a draw repeatable; not Python's draw
  OnLogits on_logits;                 ///< asks for all logits, which `fast` does without
};

/// Seconds, but for tokens_per_second.
struct Timings {
  double load = 0;         ///< opening the package
  double preprocess = 0;   ///< image -> pixel_values
  double vision = 0;       ///< vision encoder and projector
  double prefill = 0;      ///< the decoder's run over the prompt
  double first_token = 0;  ///< from the call until the first token is there
  double decode = 0;       ///< all tokens after the first
  double tokens_per_second = 0;
};

struct Generation {
  std::string text;                ///< without special tokens, and without white space at its ends
  std::vector<TokenId> token_ids;  ///< without the end token
  std::string finish_reason;       ///< "stop", "length" or "cancelled"
  int prompt_tokens = 0;           ///< positions before the answer, image tokens included
  Timings timings;
};

/// Takes text of an answer as it comes. Returning false ends the answer as "cancelled".
using OnText = std::function<bool(std::string_view)>;

/// Features of an image: float32 [num_image_tokens, hidden_size], good for the model that made
/// them.
struct ImageFeatures {
  std::vector<float> rows;
  double preprocess_seconds = 0;
  double vision_seconds = 0;
};

class Chat;

/// An open package. Its const functions may be called from several threads at once.
class Model {
 public:
  /// Open a package.
  ///
  /// Throws PackageError: the folder is no package, or a file is missing, cut or altered.
  /// Throws InputError: the package lacks the variant or the image size.
  /// Throws ProviderError: ONNX Runtime is too old for the variant, or memory is short.
  explicit Model(const std::filesystem::path& folder, const LoadOptions& options = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  /// Encode an image, for any number of questions about it.
  ImageFeatures encode_image(const Image& image) const;

  /// Answer a prompt about an image.
  ///
  /// Throws InputError: the prompt, the image or an option cannot be used.
  /// Throws PromptTooLongError: the prompt leaves no room for an answer.
  /// Throws ProviderError: ONNX Runtime failed, for example for lack of memory.
  Generation generate(const Image& image, std::string_view prompt,
                      const GenerationOptions& options = {}, const OnText& on_text = {}) const;

  /// Answer a prompt about an encoded image.
  Generation generate(const ImageFeatures& image, std::string_view prompt,
                      const GenerationOptions& options = {}, const OnText& on_text = {}) const;

  /// Begin a conversation. The model must outlive it.
  ///
  /// Throws InputError: the package's template has no turns.
  Chat chat() const;

  const Tokenizer& tokenizer() const;
  const std::string& name() const;     ///< the package's name
  const std::string& variant() const;  ///< the variant that is open
  int image_size() const;              ///< side of the square input in pixels

 private:
  friend class Chat;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A conversation: turns keep their keys and values. For one thread at a time.
class Chat {
 public:
  ~Chat();
  Chat(Chat&&) noexcept;
  Chat& operator=(Chat&&) noexcept;

  /// Ask the next question. After an error the conversation is as it was before.
  ///
  /// @param image  comes with the prompt; nullptr for a prompt alone.
  Generation ask(std::string_view prompt, const Image* image = nullptr,
                 const GenerationOptions& options = {}, const OnText& on_text = {});

  /// Forget all turns.
  void reset();

 private:
  friend class Model;
  struct Impl;
  explicit Chat(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fastvlm
