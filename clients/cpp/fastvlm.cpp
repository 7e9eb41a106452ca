// FastVLM from a fastvlm-onnx package; see fastvlm.hpp. docs/format.md describes the package.
//
// In order: files, JSON, the manifest, images, text, ONNX Runtime, the language model, answers.
#include "fastvlm.hpp"

#include <fcntl.h>
#include <jpeglib.h>
#include <openssl/evp.h>
#include <png.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <future>
#include <limits>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <queue>
#include <random>
#include <set>
#include <sstream>
#include <system_error>
#include <unordered_map>
#include <utility>

// The headers that follow define or include macros of the C libraries above.
#include <jerror.h>
#include <onnxruntime_c_api.h>

namespace fastvlm {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;
using TokenIds = std::vector<TokenId>;
using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::string text_of(const fs::path& path) { return path.u8string(); }

/// A message as one line of bounded length: a package's texts can hold any character.
std::string one_line(std::string message) {
  constexpr std::size_t longest = 1000;  // bytes
  if (message.size() > longest) message.replace(longest / 2, message.size() - longest, " ... ");
  for (char& character : message) {
    if (static_cast<unsigned char>(character) < ' ' || character == '\x7f') character = '?';
  }
  return message;
}

/// The first line of a library's message, so that ours stays one line.
std::string first_line(std::string_view message) {
  return std::string(message.substr(0, message.find('\n')));
}

// --- files ---------------------------------------------------------------------------------------

/// A regular file mapped into memory. Throws std::system_error where it cannot be opened.
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path) {
    // Opening a FIFO would wait for a writer.
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) throw std::system_error(errno, std::generic_category());
    struct stat found{};
    int fault = ::fstat(file, &found) != 0 ? errno : 0;
    if (fault == 0 && !S_ISREG(found.st_mode)) fault = S_ISDIR(found.st_mode) ? EISDIR : EINVAL;
    if (fault == 0 && found.st_size > 0) {
      size_ = static_cast<std::size_t>(found.st_size);
      void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      if (mapped == MAP_FAILED) {
        fault = errno;
      } else {
        data_ = static_cast<const std::uint8_t*>(mapped);
      }
    }
    ::close(file);
    if (fault != 0) throw std::system_error(fault, std::generic_category());
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::uint8_t*>(data_), size_);
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Map a file of a package.
MappedFile map_package_file(const fs::path& path) {
  try {
    return MappedFile(path);
  } catch (const std::system_error& error) {
    if (error.code().value() == ENOENT) {
      throw PackageError(text_of(path) + ": missing; copy or export the package again.");
    }
    throw PackageError(text_of(path) + ": cannot be read (" + error.code().message() +
                       "); expected a regular file: copy or export the package again.");
  }
}

std::string sha256_of(const MappedFile& file) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (EVP_Digest(file.data(), file.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) {
    throw Error("SHA-256 is not available in OpenSSL; install OpenSSL's default provider.");
  }
  std::string hex;
  for (unsigned int i = 0; i < size; i++) {
    hex += "0123456789abcdef"[digest[i] >> 4];
    hex += "0123456789abcdef"[digest[i] & 15];
  }
  return hex;
}

// --- JSON ----------------------------------------------------------------------------------------

Json read_json(const fs::path& path, std::size_t largest) {
  const MappedFile file = map_package_file(path);
  if (file.size() > largest) {
    throw PackageError(text_of(path) + ": has " + std::to_string(file.size()) +
                       " bytes, expected at most " + std::to_string(largest) +
                       "; export the package again.");
  }
  try {
    return Json::parse(file.text());
  } catch (const Json::exception& error) {
    throw PackageError(text_of(path) + ": cannot be read as JSON (" + first_line(error.what()) +
                       "); export the package again.");
  }
}

/// An object of a JSON file, whose members have the expected kinds. Throws PackageError otherwise.
class Fields {
 public:
  Fields(const Json& object, fs::path file, std::string where = "")
      : file_(std::move(file)), where_(std::move(where)), object_(object) {
    if (!object.is_object()) {
      const std::string what = where_.empty() ? "the content" : where_;
      throw PackageError(text_of(file_) + ": " + what + " is " + shown(object) +
                         ", expected an object; export the package again.");
    }
  }

  bool has(const std::string& key) const {
    return object_.contains(key) && !object_.at(key).is_null();
  }
  Fields object(const std::string& key) const { return {member(key), file_, path_of(key)}; }
  std::string text(const std::string& key) const {
    return expect(key, member(key).is_string(), "a text").get<std::string>();
  }
  bool flag(const std::string& key) const {
    return expect(key, member(key).is_boolean(), "true or false").get<bool>();
  }
  double number(const std::string& key) const {
    return expect(key, member(key).is_number(), "a number").get<double>();
  }
  std::int64_t count(const std::string& key, std::int64_t least = 0) const {
    const bool fits = member(key).is_number_unsigned() &&
                      member(key).get<std::uint64_t>() <= std::numeric_limits<int>::max() &&
                      member(key).get<std::int64_t>() >= least;
    return expect(key, fits, least > 0 ? "a number >= 1" : "a number >= 0").get<std::int64_t>();
  }
  std::uint64_t size_bytes(const std::string& key) const {
    return expect(key, member(key).is_number_unsigned(), "a number >= 0").get<std::uint64_t>();
  }
  TokenIds token_ids(const std::string& key) const {
    const Json& list = member(key);
    const bool fits = list.is_array() && std::all_of(list.begin(), list.end(), [](const Json& id) {
                        return id.is_number_unsigned();
                      });
    return expect(key, fits, "a list of numbers").get<TokenIds>();
  }
  std::vector<std::string> texts(const std::string& key) const {
    const Json& list = member(key);
    const bool fits =
        list.is_array() &&
        std::all_of(list.begin(), list.end(), [](const Json& text) { return text.is_string(); });
    return expect(key, fits, "a list of texts").get<std::vector<std::string>>();
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> found;
    for (const auto& item : object_.items()) found.push_back(item.key());
    return found;
  }

 private:
  std::string path_of(const std::string& key) const {
    return where_.empty() ? key : where_ + "." + key;
  }
  const Json& member(const std::string& key) const {
    if (!object_.contains(key)) {
      throw PackageError(text_of(file_) + ": " + path_of(key) +
                         " is missing; export the package again.");
    }
    return object_.at(key);
  }
  const Json& expect(const std::string& key, bool fits, const char* expected) const {
    if (!fits) {
      throw PackageError(text_of(file_) + ": " + path_of(key) + " is " + shown(member(key)) +
                         ", expected " + expected + "; export the package again.");
    }
    return member(key);
  }
  static std::string shown(const Json& value) {
    if (value.is_structured()) return value.is_array() ? "a list" : "an object";
    return value.dump(-1, ' ', true).substr(0, 60);
  }

  fs::path file_;
  std::string where_;
  const Json& object_;
};

// --- the manifest --------------------------------------------------------------------------------

constexpr int kFormatVersion = 2;
constexpr std::size_t kLargestManifest = 4'000'000;  // bytes
constexpr const char* kManifestFile = "fastvlm.json";
constexpr const char* kTokenizerFile = "tokenizer.json";
// Variants that a processor runs, the best first.
constexpr std::array kVariantsForCpu = {"fast", "int8", "web", "int4", "fp32", "fp16"};

struct FileEntry {
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct GraphFacts {
  std::vector<std::string> weights;
  std::string onnxruntime;  ///< the oldest version that runs the graph
  bool int8_products = false;
  std::string cache_dtype;  ///< empty for a graph without a cache
};

/// When the prefill graph runs the last positions of an answer again.
struct SecondPass {
  double margin = 0;           ///< where the largest logit leads the second by less
  std::int64_t positions = 0;  ///< the most positions that it runs again, the newest included
};

/// The graph files of a variant at one image size, on the CPU.
struct Variant {
  std::string name;
  std::string vision_encoder;
  std::string projector;
  std::string prefill;  ///< empty where the decoder runs prompts
  std::string decoder;  ///< up to lm_head where lm_head has graphs of its own
  std::string lm_head;
  std::string lm_head_screen;
  std::string embed_tokens;
  std::optional<SecondPass> second_pass;

  bool is_split() const { return !lm_head.empty(); }
  std::vector<std::string> graphs() const {
    std::vector<std::string> found;
    for (const auto& file :
         {vision_encoder, projector, prefill, decoder, lm_head, lm_head_screen}) {
      if (!file.empty()) found.push_back(file);
    }
    return found;
  }
};

struct PromptFormat {
  std::string system, user, after_image, end_of_turn, assistant;
};

struct DecoderFormat {
  std::int64_t hidden_size = 0, num_hidden_layers = 0, num_key_value_heads = 0, head_dim = 0;
  std::int64_t vocab_size = 0, context_length = 0;
  TokenIds eos_token_ids;
  bool is_standard = false;  ///< ONNX's operators alone, whose cache grows
};

struct Manifest {
  fs::path folder;
  std::string name;
  PromptFormat prompt;
  DecoderFormat decoder;
  std::map<std::string, GraphFacts> graphs;
  std::map<std::string, FileEntry> files;
  std::vector<std::string> variants;
  int image_size = 0;
  std::int64_t num_image_tokens = 0;
  Variant variant;
};

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const auto& text : texts) all += (all.empty() ? "" : ", ") + text;
  return all;
}

/// "1.23.2" as {1, 23}: patch releases run the same graphs.
std::pair<unsigned int, unsigned int> parse_version(const std::string& version) {
  // std::regex would overflow the stack on a long text.
  const char* const end = version.data() + version.size();
  unsigned int major = 0, minor = 0;
  const auto [dot, fault] = std::from_chars(version.data(), end, major);
  const bool has_minor = fault == std::errc() && dot != end && *dot == '.';
  const auto [rest, minor_fault] = std::from_chars(has_minor ? dot + 1 : end, end, minor);
  if (minor_fault != std::errc() || (rest != end && *rest != '.')) {
    throw PackageError("a graph's onnxruntime is " + version +
                       ", expected a version like 1.22; export the package again.");
  }
  return {major, minor};
}

/// A variant's files, with those that it has for the CPU alone.
Variant read_variant(const Fields& variants, const std::string& name, const std::string& size) {
  const Fields fields = variants.object(name);
  Variant variant;
  variant.name = name;
  variant.projector = fields.text("projector");
  variant.decoder = fields.text("decoder");
  variant.embed_tokens = fields.text("embed_tokens");
  const Fields encoders = fields.object("vision_encoder");
  if (encoders.has(size)) variant.vision_encoder = encoders.text(size);
  const std::string prefill = fields.text("prefill");
  if (prefill != variant.decoder) variant.prefill = prefill;

  bool has_own_decoder = false;
  if (fields.has("per_provider") && fields.object("per_provider").has("cpu")) {
    const Fields own = fields.object("per_provider").object("cpu");
    if (own.has("vision_encoder") && own.object("vision_encoder").has(size)) {
      variant.vision_encoder = own.object("vision_encoder").text(size);
    }
    if (own.has("projector")) variant.projector = own.text("projector");
    has_own_decoder = own.has("decoder");
    if (has_own_decoder) variant.decoder = own.text("decoder");
    if (own.has("prefill")) variant.prefill = own.text("prefill");
  }
  if (!has_own_decoder && fields.has("split_decoder")) {
    const Fields parts = fields.object("split_decoder");
    variant.decoder = parts.text("decoder_layers");
    variant.lm_head = parts.text("lm_head");
    variant.lm_head_screen = parts.text("lm_head_screen");
  }
  if (variant.is_split() && fields.has("second_pass")) {
    const Fields second_pass = fields.object("second_pass");
    variant.second_pass = {second_pass.number("margin"), second_pass.count("positions", 1)};
  }
  return variant;
}

/// Refuse names that leave the folder, and graphs whose facts or files are not listed.
void check_names(const Manifest& manifest, const fs::path& path) {
  for (const auto& [name, entry] : manifest.files) {
    const bool leaves = name.empty() || name.find_first_of("/\\:") != std::string::npos ||
                        name.find('\0') != std::string::npos || name == "." || name == "..";
    if (leaves) {
      throw PackageError(text_of(path) + ": files." + name +
                         " leaves the package's folder; do not trust it.");
    }
  }
  const auto require = [&](const std::string& name) {
    if (manifest.files.count(name) == 0) {
      throw PackageError(text_of(path) + ": names " + name +
                         ", which is not among its files; export the package again.");
    }
  };
  for (const auto& graph : manifest.variant.graphs()) {
    require(graph);
    const auto facts = manifest.graphs.find(graph);
    if (facts == manifest.graphs.end()) {
      throw PackageError(text_of(path) + ": names " + graph +
                         ", which is not among its graphs; export the package again.");
    }
    for (const auto& weights : facts->second.weights) require(weights);
  }
  require(manifest.variant.embed_tokens);
  require(kTokenizerFile);
}

/// Choose the asked variant, or the best that this ONNX Runtime runs.
Variant choose_variant(const Manifest& manifest, const Fields& variants, const std::string& asked,
                       const std::string& size, const std::string& installed) {
  const auto least = [&](const Variant& variant) {
    std::string version = "1.20";
    for (const auto& graph : variant.graphs()) {
      const auto facts = manifest.graphs.find(graph);
      if (facts != manifest.graphs.end() &&
          parse_version(facts->second.onnxruntime) > parse_version(version)) {
        version = facts->second.onnxruntime;
      }
    }
    return version;
  };
  const auto runs = [&](const Variant& variant) {
    return parse_version(installed) >= parse_version(least(variant));
  };
  std::vector<std::string> names;
  if (!asked.empty()) {
    if (!variants.has(asked)) {
      throw InputError(text_of(manifest.folder) + ": has no " + asked + " variant, only " +
                       joined(manifest.variants) + "; add it with `fastvlm-onnx export --add`.");
    }
    names = {asked};
  } else {
    for (const char* name : kVariantsForCpu) {
      if (variants.has(name)) names.emplace_back(name);
    }
    if (names.empty()) names = manifest.variants;
  }
  for (const auto& name : names) {
    const Variant variant = read_variant(variants, name, size);
    if (runs(variant)) return variant;
  }
  const Variant variant = read_variant(variants, names.front(), size);
  throw ProviderError(text_of(manifest.folder) + ": ONNX Runtime is " + installed + ", and " +
                      variant.name + " needs at least " + least(variant) +
                      "; install a newer ONNX Runtime, or choose another variant.");
}

/// Read fastvlm.json, and choose a variant and an image size.
Manifest read_manifest(const fs::path& folder, const LoadOptions& options,
                       const std::string& installed) {
  const fs::path path = folder / kManifestFile;
  if (std::error_code ignored; !fs::exists(path, ignored)) {
    throw PackageError(text_of(folder) + ": has no " + kManifestFile +
                       ", so it is no exported package; give the folder that export wrote.");
  }
  const Json content = read_json(path, kLargestManifest);
  const Fields fields(content, path);
  if (const auto version = fields.count("format_version"); version != kFormatVersion) {
    throw PackageError(text_of(path) + ": has format_version " + std::to_string(version) +
                       ", expected " + std::to_string(kFormatVersion) +
                       "; export the package again, or use a client that knows this format.");
  }

  Manifest manifest;
  manifest.folder = folder;
  manifest.name = fields.object("source").text("name");
  const Fields prompt = fields.object("prompt");
  manifest.prompt = {prompt.text("system"), prompt.text("user"), prompt.text("after_image"),
                     prompt.text("end_of_turn"), prompt.text("assistant")};

  const Fields sizes = fields.object("decoder");
  DecoderFormat& decoder = manifest.decoder;
  decoder.hidden_size = sizes.count("hidden_size", 1);
  decoder.num_hidden_layers = sizes.count("num_hidden_layers", 1);
  decoder.num_key_value_heads = sizes.count("num_key_value_heads", 1);
  decoder.head_dim = sizes.count("head_dim", 1);
  decoder.vocab_size = sizes.count("vocab_size", 1);
  decoder.context_length = sizes.count("context_length", 1);
  decoder.eos_token_ids = sizes.token_ids("eos_token_ids");
  decoder.is_standard = sizes.text("operators") == "standard";

  const Fields graphs = fields.object("graphs");
  for (const auto& name : graphs.keys()) {
    const Fields graph = graphs.object(name);
    manifest.graphs[name] = {graph.texts("weights"), graph.text("onnxruntime"),
                             graph.flag("int8_products"),
                             graph.has("cache_dtype") ? graph.text("cache_dtype") : ""};
  }
  const Fields files = fields.object("files");
  for (const auto& name : files.keys()) {
    const Fields file = files.object(name);
    manifest.files[name] = {file.size_bytes("bytes"), file.text("sha256")};
  }

  const Fields image = fields.object("image");
  for (const auto& [key, known] : {std::pair{"padding", "pad"}, std::pair{"resample", "bicubic"},
                                   std::pair{"rescale", "1/255"}}) {
    if (image.text(key) != known) {
      throw PackageError(text_of(path) + ": image." + key + " is " + image.text(key) +
                         ", expected " + known + "; use a client that knows it.");
    }
  }
  manifest.image_size = options.image_size > 0 ? options.image_size
                                               : static_cast<int>(image.count("default_size", 1));
  const std::int64_t side = manifest.image_size / image.count("patch_size", 1);
  manifest.num_image_tokens = side * side;

  const Fields variants = fields.object("variants");
  manifest.variants = variants.keys();
  if (manifest.variants.empty()) {
    throw PackageError(text_of(path) + ": variants is empty; export the package again.");
  }
  const std::string size = std::to_string(manifest.image_size);
  manifest.variant = choose_variant(manifest, variants, options.variant, size, installed);
  if (manifest.variant.vision_encoder.empty()) {
    const auto names = variants.object(manifest.variant.name).object("vision_encoder").keys();
    throw InputError(text_of(folder) + ": was not exported for " + size + " pixels, only for " +
                     joined(names) + "; add it with `fastvlm-onnx export --add`.");
  }
  if (manifest.num_image_tokens > decoder.context_length) {
    throw PackageError(text_of(path) + ": an image has " +
                       std::to_string(manifest.num_image_tokens) +
                       " tokens, and the context holds " + std::to_string(decoder.context_length) +
                       "; export the package again.");
  }
  check_names(manifest, path);
  return manifest;
}

/// The scales of int8 embeddings lie beside them.
std::string scale_file(const std::string& embed_tokens) {
  return embed_tokens.substr(0, embed_tokens.rfind(".npy")) + ".scale.npy";
}

void check_size(const Manifest& manifest, const std::string& name) {
  const fs::path path = manifest.folder / name;
  const std::uint64_t found = map_package_file(path).size();
  const std::uint64_t expected = manifest.files.at(name).bytes;
  if (found != expected) {
    throw PackageError(text_of(path) + ": found " + std::to_string(found) + " bytes, expected " +
                       std::to_string(expected) +
                       "; the file was cut or replaced: copy or export the package again.");
  }
}

void check_hash(const Manifest& manifest, const std::string& name) {
  const fs::path path = manifest.folder / name;
  const std::string found = sha256_of(map_package_file(path));
  const std::string& expected = manifest.files.at(name).sha256;
  if (found != expected) {
    throw PackageError(text_of(path) + ": sha256 is " + found.substr(0, 12) + ", expected " +
                       expected.substr(0, 12) +
                       "; the file was altered: copy or export the package again.");
  }
}

// --- images --------------------------------------------------------------------------------------

// Pillow's limit on pixels, and the longest side that a JPEG can have.
constexpr std::int64_t kMaxPixels = 178'956'970;
constexpr std::int64_t kMaxSide = 65'535;

void check_image_size(const std::string& name, std::int64_t width, std::int64_t height) {
  const std::string found =
      name + ": has " + std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (width < 1 || height < 1) throw InputError(found + "; expected at least one.");
  if (std::max(width, height) > kMaxSide || width * height > kMaxPixels) {
    throw InputError(found + ", more than " + std::to_string(kMaxPixels) +
                     " or than 65535 on a side; make the picture smaller.");
  }
}

/// libjpeg and libpng leave a decoder by longjmp, so no object with a destructor may live in the
/// function that calls them.
struct DecoderFault {
  std::jmp_buf place;
  char message[JMSG_LENGTH_MAX] = "";
};

struct JpegReader {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  DecoderFault fault;

  JpegReader() {
    info.err = jpeg_std_error(&errors);
    info.client_data = &fault;
    errors.error_exit = [](j_common_ptr common) {
      auto* failed = static_cast<DecoderFault*>(common->client_data);
      common->err->format_message(common, failed->message);
      std::longjmp(failed->place, 1);
    };
    // libjpeg fills a file that is cut off with gray and warns.
    errors.emit_message = [](j_common_ptr common, int level) {
      if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) common->err->error_exit(common);
    };
  }
  ~JpegReader() { jpeg_destroy_decompress(&info); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
};

/// Pillow's CMYK -> RGB, on values that Adobe's programs store inverted.
void rgb_of_inverted_cmyk(const std::uint8_t* cmyk, std::uint8_t* rgb, std::size_t pixels) {
  for (std::size_t i = 0; i < pixels; i++, cmyk += 4, rgb += 3) {
    const int black = cmyk[3];
    for (int channel = 0; channel < 3; channel++) {
      const int product = (255 - cmyk[channel]) * black + 128;
      rgb[channel] =
          static_cast<std::uint8_t>(std::max(0, black - (((product >> 8) + product) >> 8)));
    }
  }
}

/// Returns false after a fault, which `reader` holds.
bool decode_jpeg(JpegReader& reader, const std::uint8_t* data, std::size_t size,
                 const std::string& name, Image& image, Bytes& row) {
  if (setjmp(reader.fault.place) != 0) return false;
  jpeg_decompress_struct& info = reader.info;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, data, static_cast<unsigned long>(size));
  jpeg_read_header(&info, TRUE);
  check_image_size(name, info.image_width, info.image_height);
  const bool is_cmyk = info.num_components == 4;
  info.out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&info);
  image.width = static_cast<int>(info.output_width);
  image.height = static_cast<int>(info.output_height);
  image.rgb.resize(std::size_t{3} * info.output_width * info.output_height);
  row.resize(std::size_t{4} * info.output_width);
  while (info.output_scanline < info.output_height) {
    std::uint8_t* to = image.rgb.data() + std::size_t{3} * info.output_width * info.output_scanline;
    JSAMPROW line = is_cmyk ? row.data() : to;
    jpeg_read_scanlines(&info, &line, 1);
    if (is_cmyk) rgb_of_inverted_cmyk(row.data(), to, info.output_width);
  }
  jpeg_finish_decompress(&info);
  return true;
}

struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  DecoderFault fault;
  const std::uint8_t* data;
  std::size_t left;

  PngReader(const std::uint8_t* from, std::size_t size) : data(from), left(size) {
    png = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, &fault,
        [](png_structp self, png_const_charp message) {
          auto* failed = static_cast<DecoderFault*>(png_get_error_ptr(self));
          std::snprintf(failed->message, sizeof failed->message, "%s", message);
          std::longjmp(failed->place, 1);
        },
        [](png_structp, png_const_charp) {});
    if (png == nullptr) throw std::bad_alloc();
    info = png_create_info_struct(png);
    if (info == nullptr) throw std::bad_alloc();
    png_set_read_fn(png, this, [](png_structp self, png_bytep to, std::size_t count) {
      auto* reader = static_cast<PngReader*>(png_get_io_ptr(self));
      if (count > reader->left) png_error(self, "the file is cut off");
      std::memcpy(to, reader->data, count);
      reader->data += count;
      reader->left -= count;
    });
  }
  ~PngReader() { png_destroy_read_struct(&png, info != nullptr ? &info : nullptr, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
};

/// Returns false after a fault, which `reader` holds.
bool decode_png(PngReader& reader, const std::string& name, Image& image,
                std::vector<png_bytep>& rows, Bytes& gray16) {
  if (setjmp(reader.fault.place) != 0) return false;
  png_structp png = reader.png;
  png_read_info(png, reader.info);
  const auto width = png_get_image_width(png, reader.info);
  const auto height = png_get_image_height(png, reader.info);
  check_image_size(name, width, height);
  const int color = png_get_color_type(png, reader.info);
  // Pillow clips 16-bit gray at 255, and keeps the high byte of 16-bit colors.
  const bool is_gray16 = color == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, reader.info) == 16;
  if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (color == PNG_COLOR_TYPE_GRAY && !is_gray16) png_set_expand_gray_1_2_4_to_8(png);
  if (!is_gray16) {
    png_set_strip_16(png);
    png_set_strip_alpha(png);
    if ((color & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png);
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, reader.info);
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.rgb.resize(std::size_t{3} * width * height);
  if (is_gray16) gray16.resize(std::size_t{2} * width * height);
  std::uint8_t* pixels = is_gray16 ? gray16.data() : image.rgb.data();
  const std::size_t stride = std::size_t{is_gray16 ? 2U : 3U} * width;
  rows.resize(height);
  for (std::size_t y = 0; y < height; y++) rows[y] = pixels + y * stride;
  png_read_image(png, rows.data());
  for (std::size_t i = 0; i < gray16.size() / 2; i++) {
    const std::uint8_t value = gray16[2 * i] != 0 ? 255 : gray16[2 * i + 1];
    std::fill_n(image.rgb.begin() + static_cast<std::ptrdiff_t>(3 * i), 3, value);
  }
  return true;
}

/// The input pixels that an output pixel is made of, with weights in 22-bit fixed point.
struct Taps {
  int first = 0;
  std::vector<std::int32_t> weights;
};

constexpr int kFractionBits = 22;
constexpr double kBicubicReach = 2.0;

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

/// The taps of each output pixel of a line, as Pillow computes them.
std::vector<Taps> bicubic_taps(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  const double widening = std::max(scale, 1.0);
  const double reach = kBicubicReach * widening;
  std::vector<Taps> line(static_cast<std::size_t>(to));
  std::vector<double> weights;
  for (int i = 0; i < to; i++) {
    const double center = (i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - reach + 0.5));
    const int last = std::min(from, static_cast<int>(center + reach + 0.5));
    weights.clear();
    double sum = 0;
    for (int j = first; j < last; j++) {
      weights.push_back(bicubic((j - center + 0.5) * (1.0 / widening)));
      sum += weights.back();
    }
    Taps& taps = line[static_cast<std::size_t>(i)];
    taps.first = first;
    for (const double weight : weights) {
      const double fixed = weight / sum * (1 << kFractionBits);
      taps.weights.push_back(static_cast<std::int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return line;
}

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

/// The range of taps that fall on the image; the others fall on the black border.
std::pair<int, int> taps_within(const Taps& taps, int offset, int length) {
  const int count = static_cast<int>(taps.weights.size());
  const int begin = std::clamp(offset - taps.first, 0, count);
  return {begin, std::clamp(offset + length - taps.first, begin, count)};
}

/// Resize the rows of the padded square: [height, width, 3] -> [height, to, 3].
Bytes resize_rows(const Image& image, const std::vector<Taps>& line, int left) {
  const std::size_t to = line.size(), height = static_cast<std::size_t>(image.height);
  const std::size_t stride = std::size_t{3} * static_cast<std::size_t>(image.width);
  Bytes out(3 * to * height);
  for (std::size_t i = 0; i < to; i++) {
    const auto [begin, end] = taps_within(line[i], left, image.width);
    const std::int32_t* weights = line[i].weights.data();
    const std::ptrdiff_t first = std::ptrdiff_t{3} * (line[i].first + begin - left);
    for (std::size_t y = 0; y < height; y++) {
      std::int32_t sums[3];
      std::fill_n(sums, 3, 1 << (kFractionBits - 1));
      const std::uint8_t* pixel = image.rgb.data() + y * stride + (begin < end ? first : 0);
      for (int j = begin; j < end; j++, pixel += 3) {
        for (int channel = 0; channel < 3; channel++) sums[channel] += weights[j] * pixel[channel];
      }
      std::transform(sums, sums + 3, &out[3 * (y * to + i)], rounded);
    }
  }
  return out;
}

/// Resize the columns of the padded square: [height, to, 3] -> [to, to, 3].
Bytes resize_columns(const Bytes& rows, const std::vector<Taps>& line, int top, int height) {
  const std::size_t to = line.size(), stride = 3 * to;
  Bytes out(stride * to);
  std::vector<std::int32_t> sums(stride);
  for (std::size_t i = 0; i < to; i++) {
    const auto [begin, end] = taps_within(line[i], top, height);
    std::fill(sums.begin(), sums.end(), 1 << (kFractionBits - 1));
    for (int j = begin; j < end; j++) {
      const std::int32_t weight = line[i].weights[static_cast<std::size_t>(j)];
      const std::uint8_t* row =
          rows.data() + static_cast<std::size_t>(line[i].first + j - top) * stride;
      for (std::size_t x = 0; x < stride; x++) sums[x] += weight * row[x];
    }
    std::transform(sums.begin(), sums.end(), out.begin() + static_cast<std::ptrdiff_t>(i * stride),
                   rounded);
  }
  return out;
}

// --- text ----------------------------------------------------------------------------------------

/// Return the character at a byte of UTF-8, and move to the next; below 0 for an invalid byte.
UChar32 next_character(std::string_view text, std::int32_t& i) {
  UChar32 character = 0;
  U8_NEXT(text.data(), i, static_cast<std::int32_t>(text.size()), character);
  return character;
}

/// Throws InputError where a text is not valid UTF-8.
void check_utf8(std::string_view text) {
  if (text.size() > std::numeric_limits<std::int32_t>::max()) {
    throw InputError("the prompt has more than 2 GB; shorten it.");
  }
  const auto length = static_cast<std::int32_t>(text.size());
  for (std::int32_t i = 0; i < length;) {
    const std::int32_t begin = i;
    const UChar32 character = next_character(text, i);
    if (character < 0) {
      throw InputError("the prompt is not valid UTF-8 at byte " + std::to_string(begin + 1) +
                       "; pass valid UTF-8.");
    }
  }
}

std::string normalized(std::string_view text) {
  check_utf8(text);
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(status);
  std::string result;
  icu::StringByteSink<std::string> sink(&result);
  if (U_SUCCESS(status)) {
    nfc->normalizeUTF8(0, {text.data(), static_cast<std::int32_t>(text.size())}, sink, nullptr,
                       status);
  }
  if (U_FAILURE(status)) {
    throw Error(std::string("ICU cannot normalize text (") + u_errorName(status) +
                "); install ICU's data.");
  }
  return result;
}

/// White space as Python's str.strip() knows it.
bool is_stripped(UChar32 character) {
  const UCharDirection direction = u_charDirection(character);
  return u_charType(character) == U_SPACE_SEPARATOR || direction == U_WHITE_SPACE_NEUTRAL ||
         direction == U_BLOCK_SEPARATOR || direction == U_SEGMENT_SEPARATOR;
}

bool is_blank(std::string_view text) {
  const auto length = static_cast<std::int32_t>(text.size());
  for (std::int32_t i = 0; i < length;) {
    const UChar32 character = next_character(text, i);
    if (!is_stripped(character)) return false;
  }
  return true;
}

/// Splits text into the words that byte-pair encoding works on.
///
/// The rule is Qwen2's regular expression (kQwen2Split), whose alternatives are tried in order.
class WordSplitter {
 public:
  explicit WordSplitter(std::string_view text) : text_(text) {
    const auto length = static_cast<std::int32_t>(text.size());
    for (std::int32_t i = 0; i < length;) {
      begins_.push_back(i);
      const UChar32 character = next_character(text, i);
      characters_.push_back(character);
    }
    begins_.push_back(length);
  }

  std::vector<std::string_view> words() const {
    std::vector<std::string_view> found;
    for (std::size_t begin = 0; begin < characters_.size();) {
      const std::size_t end = end_of_word(begin);
      const auto from = static_cast<std::size_t>(begins_[begin]);
      found.push_back(text_.substr(from, static_cast<std::size_t>(begins_[end]) - from));
      begin = end;
    }
    return found;
  }

 private:
  // 0 stands for the end of the text: it is in none of the classes but "other".
  UChar32 at(std::size_t i) const { return i < characters_.size() ? characters_[i] : 0; }
  bool is_end(std::size_t i) const { return i >= characters_.size(); }
  bool is_letter(std::size_t i) const {
    return !is_end(i) && (U_GET_GC_MASK(at(i)) & U_GC_L_MASK) != 0;
  }
  bool is_number(std::size_t i) const {
    return !is_end(i) && (U_GET_GC_MASK(at(i)) & U_GC_N_MASK) != 0;
  }
  bool is_space(std::size_t i) const { return !is_end(i) && u_isUWhiteSpace(at(i)) != 0; }
  bool is_line_break(std::size_t i) const { return at(i) == '\r' || at(i) == '\n'; }
  bool is_other(std::size_t i) const {
    return !is_end(i) && !is_letter(i) && !is_number(i) && !is_space(i);
  }
  UChar32 folded(std::size_t i) const { return u_foldCase(at(i), U_FOLD_CASE_DEFAULT); }

  std::size_t end_of_word(std::size_t begin) const {
    // (?i:'s|'t|'re|'ve|'m|'ll|'d)
    if (at(begin) == '\'') {
      const UChar32 first = folded(begin + 1), second = folded(begin + 2);
      if (first == 's' || first == 't' || first == 'm' || first == 'd') return begin + 2;
      const bool is_pair = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                           (first == 'l' && second == 'l');
      if (is_pair) return begin + 3;
    }
    // [^\r\n\p{L}\p{N}]?\p{L}+
    const bool may_lead = !is_line_break(begin) && !is_letter(begin) && !is_number(begin);
    std::size_t end = begin + (may_lead ? 1 : 0);
    if (is_letter(end)) {
      while (is_letter(end)) end++;
      return end;
    }
    // \p{N}
    if (is_number(begin)) return begin + 1;
    //  ?[^\s\p{L}\p{N}]+[\r\n]*
    end = begin + (at(begin) == ' ' ? 1 : 0);
    if (is_other(end)) {
      while (is_other(end)) end++;
      while (is_line_break(end)) end++;
      return end;
    }
    // \s*[\r\n]+
    std::size_t after_break = begin;
    for (end = begin; is_space(end); end++) {
      if (is_line_break(end)) after_break = end + 1;
    }
    if (after_break > begin) return after_break;
    // \s+(?!\S) leaves the last space to the word that follows, and \s+
    return is_end(end) || end == begin + 1 ? end : end - 1;
  }

  std::string_view text_;
  std::vector<UChar32> characters_;
  std::vector<std::int32_t> begins_;
};

constexpr const char* kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::size_t kLargestTokenizer = 64'000'000;  // bytes; Qwen2's has 11 million
constexpr std::int64_t kLargestVocabulary = 500'000;

/// Byte-level BPE's printable stand-in for each byte, as a code point. Source: GPT-2's encoder.
std::array<UChar32, 256> byte_alphabet() {
  std::array<UChar32, 256> alphabet{};
  UChar32 next = 0x100;
  for (UChar32 byte = 0; byte < 256; byte++) {
    const bool prints =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[static_cast<std::size_t>(byte)] = prints ? byte : next++;
  }
  return alphabet;
}

std::string utf8_of(UChar32 character) {
  std::string text;
  icu::UnicodeString(character).toUTF8String(text);
  return text;
}

/// Characters from bytes of tokens. A character split over tokens waits for its last byte.
class TextStream {
 public:
  std::string add(const std::string& bytes) {
    pending_ += bytes;
    auto whole = static_cast<std::int32_t>(pending_.size());
    U8_TRUNCATE_IF_INCOMPLETE(pending_.data(), 0, whole);
    return take(static_cast<std::size_t>(whole));
  }
  std::string finish() { return take(pending_.size()); }

 private:
  /// Invalid bytes become U+FFFD.
  std::string take(std::size_t count) {
    std::string text;
    icu::UnicodeString::fromUTF8({pending_.data(), static_cast<std::int32_t>(count)})
        .toUTF8String(text);
    pending_.erase(0, count);
    return text;
  }

  std::string pending_;
};

/// Text without the white space at its two ends. White space at the end is held back.
class StrippedStream {
 public:
  std::string add(const std::string& text) {
    std::string shown;
    const auto length = static_cast<std::int32_t>(text.size());
    for (std::int32_t i = 0; i < length;) {
      const std::int32_t begin = i;
      const UChar32 character = next_character(text, i);
      const auto bytes =
          text.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(i - begin));
      if (!is_stripped(character)) {
        shown += held_ + bytes;
        held_.clear();
        has_begun_ = true;
      } else if (has_begun_) {
        held_ += bytes;
      }
    }
    return shown;
  }

 private:
  std::string held_;
  bool has_begun_ = false;
};

}  // namespace

Error::Error(const std::string& message) : std::runtime_error(one_line(message)) {}

Image decode_image(const std::uint8_t* data, std::size_t size, const std::string& name) {
  constexpr std::array<std::uint8_t, 3> jpeg_magic = {0xFF, 0xD8, 0xFF};
  Image image;
  std::optional<std::string> fault;
  if (size >= 8 && png_sig_cmp(data, 0, 8) == 0) {
    PngReader reader(data, size);
    std::vector<png_bytep> rows;
    Bytes gray16;
    if (!decode_png(reader, name, image, rows, gray16)) fault = reader.fault.message;
  } else if (size >= 3 && std::equal(jpeg_magic.begin(), jpeg_magic.end(), data)) {
    JpegReader reader;
    Bytes row;
    if (!decode_jpeg(reader, data, size, name, image, row)) fault = reader.fault.message;
  } else {
    throw InputError(name + ": not a picture in a known format; expected JPEG or PNG.");
  }
  if (fault) {
    throw InputError(name + ": cannot be decoded (" + first_line(*fault) +
                     "); the file may be cut off or damaged: save it again.");
  }
  return image;
}

Image read_image(const fs::path& path) {
  const std::string name = text_of(path);
  try {
    const MappedFile file(path);
    return decode_image(file.data(), file.size(), name);
  } catch (const std::system_error& error) {
    if (error.code().value() == ENOENT) {
      throw InputError(name + ": no such picture; give the path of an image file.");
    }
    throw InputError(name + ": cannot be read (" + error.code().message() +
                     "); expected an image file.");
  }
}

std::vector<std::uint8_t> resize(const Image& image, int image_size) {
  check_image_size("the picture", image.width, image.height);
  const auto pixels = std::size_t(image.width) * std::size_t(image.height);
  if (image.rgb.size() != 3 * pixels) {
    throw InputError("the picture holds " + std::to_string(image.rgb.size()) +
                     " bytes, expected width * height * 3; give RGB pixels.");
  }
  if (image_size < 1) {
    throw InputError("image_size is " + std::to_string(image_size) + "; expected 1 or more.");
  }
  const int side = std::max(image.width, image.height);
  const std::vector<Taps> line = bicubic_taps(side, image_size);
  // Pillow resizes rows first, and rounds to uint8 in between. Black pixels add nothing.
  const Bytes rows = resize_rows(image, line, (side - image.width) / 2);
  return resize_columns(rows, line, (side - image.height) / 2, image.height);
}

std::vector<float> preprocess(const Image& image, int image_size) {
  // float32(v / 255) is another number than v * float32(1 / 255) for half of the values.
  std::array<float, 256> rescaled{};
  for (std::size_t value = 0; value < rescaled.size(); value++) {
    rescaled[value] = static_cast<float>(static_cast<double>(value) * (1.0 / 255.0));
  }
  const Bytes pixels = resize(image, image_size);
  const std::size_t plane = pixels.size() / 3;
  Floats values(pixels.size());
  for (std::size_t i = 0; i < plane; i++) {
    for (std::size_t channel = 0; channel < 3; channel++) {
      values[channel * plane + i] = rescaled[pixels[3 * i + channel]];
    }
  }
  return values;
}

// --- the tokenizer -------------------------------------------------------------------------------

struct Tokenizer::Impl {
  struct Merge {
    std::uint32_t rank = 0;
    std::uint32_t token = 0;
  };

  std::array<std::uint32_t, 256> token_of_byte{};
  std::unordered_map<std::uint64_t, Merge> merges;
  std::vector<std::string> bytes;                               ///< of each token; "" if special
  std::vector<std::pair<std::string, TokenId>> special, plain;  ///< added tokens, the longest first

  static std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) {
    return std::uint64_t{left} << 32 | right;
  }

  explicit Impl(const fs::path& path) {
    const Json content = read_json(path, kLargestTokenizer);
    try {
      check_kind(content, path);
      read_model(content.at("model"));
      for (const Json& added : content.value("added_tokens", Json::array())) read_added(added);
    } catch (const Json::exception& error) {
      throw PackageError(text_of(path) + ": not a tokenizer (" + first_line(error.what()) +
                         "); export the package again.");
    } catch (const std::out_of_range& error) {
      throw PackageError(text_of(path) +
                         ": not a tokenizer (a token is missing or out of range); export the "
                         "package again.");
    }
    const auto longest_first = [](const auto& one, const auto& other) {
      return one.first.size() > other.first.size();
    };
    std::stable_sort(special.begin(), special.end(), longest_first);
    std::stable_sort(plain.begin(), plain.end(), longest_first);
  }

  /// The exporter writes one kind of tokenizer. Another kind would give other ids, silently.
  static void check_kind(const Json& content, const fs::path& path) {
    const auto expect = [&](bool fits, const char* what) {
      if (!fits) {
        throw PackageError(text_of(path) + ": not Qwen2's tokenizer (" + what +
                           " differs); export the package again.");
      }
    };
    const Json& model = content.at("model");
    expect(model.at("type") == "BPE", "model.type");
    expect(!model.value("ignore_merges", false), "model.ignore_merges");
    expect(content.at("decoder").at("type") == "ByteLevel", "decoder");
    const Json normalizer = content.value("normalizer", Json());
    expect(normalizer.is_null() || normalizer.at("type") == "NFC", "normalizer");
    const Json& steps = content.at("pre_tokenizer").at("pretokenizers");
    expect(steps.size() == 2, "pre_tokenizer");
    expect(steps[0].at("type") == "Split" && steps[0].at("behavior") == "Isolated" &&
               !steps[0].value("invert", false) &&
               steps[0].at("pattern").value("Regex", "") == kQwen2Split,
           "pre_tokenizer.Split");
    expect(steps[1].at("type") == "ByteLevel" && !steps[1].at("add_prefix_space").get<bool>() &&
               !steps[1].at("use_regex").get<bool>(),
           "pre_tokenizer.ByteLevel");
  }

  void read_model(const Json& model) {
    const auto alphabet = byte_alphabet();
    std::unordered_map<UChar32, char> byte_of;
    for (std::size_t byte = 0; byte < alphabet.size(); byte++) {
      byte_of[alphabet[byte]] = static_cast<char>(byte);
    }
    std::unordered_map<std::string, std::uint32_t> id_of;
    const Json& vocab = model.at("vocab");
    id_of.reserve(vocab.size());
    for (const auto& [token, id] : vocab.items()) {
      id_of[token] = static_cast<std::uint32_t>(checked_id(id));
      bytes_at(checked_id(id)) = bytes_of_token(token, byte_of);
    }
    for (std::size_t byte = 0; byte < alphabet.size(); byte++) {
      token_of_byte[byte] = id_of.at(utf8_of(alphabet[byte]));
    }
    std::uint32_t rank = 0;
    merges.reserve(model.at("merges").size());
    for (const Json& merge : model.at("merges")) {
      std::string left, right;
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        left = text.substr(0, text.find(' '));
        right = text.substr(std::min(text.size(), left.size() + 1));
      } else {
        left = merge.at(0).get<std::string>();
        right = merge.at(1).get<std::string>();
      }
      merges[pair_of(id_of.at(left), id_of.at(right))] = {rank++, id_of.at(left + right)};
    }
  }

  static std::string bytes_of_token(const std::string& token,
                                    const std::unordered_map<UChar32, char>& byte_of) {
    std::string found;
    const auto length = static_cast<std::int32_t>(token.size());
    for (std::int32_t i = 0; i < length;) {
      const UChar32 character = next_character(token, i);
      const auto byte = byte_of.find(character);
      if (byte == byte_of.end()) return token;  // a word outside the alphabet is stored as text
      found += byte->second;
    }
    return found;
  }

  void read_added(const Json& added) {
    const auto content = added.at("content").get<std::string>();
    const TokenId id = checked_id(added.at("id"));
    const bool is_special = added.value("special", false);
    if (content.empty()) throw std::out_of_range("content");
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      if (added.value(flag, false)) throw std::out_of_range(flag);
    }
    bytes_at(id) = is_special ? "" : content;
    (is_special ? special : plain).emplace_back(content, id);
  }

  static TokenId checked_id(const Json& id) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= kLargestVocabulary) {
      throw std::out_of_range("id");
    }
    return id.get<TokenId>();
  }

  std::string& bytes_at(TokenId id) {
    const auto index = static_cast<std::size_t>(id);
    if (index >= bytes.size()) bytes.resize(index + 1);
    return bytes[index];
  }

  /// Split a text at added tokens, leftmost and longest first; `encode_rest` takes the text
  /// between.
  template <class EncodeRest>
  static void split(std::string_view text,
                    const std::vector<std::pair<std::string, TokenId>>& added, TokenIds& ids,
                    const EncodeRest& encode_rest) {
    std::size_t begin = 0;
    while (begin < text.size()) {
      std::size_t found = std::string_view::npos;
      const std::pair<std::string, TokenId>* match = nullptr;
      for (const auto& token : added) {
        const std::size_t at = text.find(token.first, begin);
        if (at < found) {
          found = at;
          match = &token;
        }
      }
      const std::size_t end = std::min(found, text.size());
      if (end > begin) encode_rest(text.substr(begin, end - begin), ids);
      if (match == nullptr) return;
      ids.push_back(match->second);
      begin = found + match->first.size();
    }
  }

  void encode_plain(std::string_view text, TokenIds& ids) const {
    split(text, plain, ids, [this](std::string_view rest, TokenIds& to) {
      for (const std::string_view word : WordSplitter(rest).words()) encode_word(word, to);
    });
  }

  /// Byte-pair encoding: merge the pair of the lowest rank, the leftmost first, until none is left.
  void encode_word(std::string_view word, TokenIds& ids) const {
    struct Symbol {
      std::uint32_t token;
      std::size_t previous, next;
      bool is_merged;
    };
    struct Candidate {
      std::uint32_t rank;
      std::size_t left;
      std::uint32_t left_token, right_token;
      bool operator<(const Candidate& other) const {  // the top of a priority_queue is the largest
        return std::pair(rank, left) > std::pair(other.rank, other.left);
      }
    };
    std::vector<Symbol> symbols;
    for (std::size_t i = 0; i < word.size(); i++) {
      symbols.push_back({token_of_byte[static_cast<std::uint8_t>(word[i])], i - 1, i + 1, false});
    }
    std::priority_queue<Candidate> candidates;
    const auto consider = [&](std::size_t left) {
      const std::size_t right = symbols[left].next;
      if (right >= symbols.size()) return;
      const auto merge = merges.find(pair_of(symbols[left].token, symbols[right].token));
      if (merge == merges.end()) return;
      candidates.push({merge->second.rank, left, symbols[left].token, symbols[right].token});
    };
    for (std::size_t i = 0; i < symbols.size(); i++) consider(i);
    while (!candidates.empty()) {
      const Candidate best = candidates.top();
      candidates.pop();
      Symbol& left = symbols[best.left];
      // A symbol of the pair may have been merged with another one meanwhile.
      if (left.is_merged || left.token != best.left_token || left.next >= symbols.size() ||
          symbols[left.next].token != best.right_token) {
        continue;
      }
      Symbol& right = symbols[left.next];
      left.token = merges.at(pair_of(left.token, right.token)).token;
      left.next = right.next;
      right.is_merged = true;
      if (left.next < symbols.size()) symbols[left.next].previous = best.left;
      consider(best.left);
      if (left.previous < symbols.size()) consider(left.previous);
    }
    for (const Symbol& symbol : symbols) {
      if (!symbol.is_merged) ids.push_back(symbol.token);
    }
  }
};

Tokenizer::Tokenizer(const fs::path& path) : impl_(std::make_unique<Impl>(path)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

TokenIds Tokenizer::encode(std::string_view text) const {
  TokenIds ids;
  impl_->encode_plain(normalized(text), ids);
  return ids;
}

TokenIds Tokenizer::encode_template(std::string_view text) const {
  TokenIds ids;
  Impl::split(normalized(text), impl_->special, ids, [this](std::string_view rest, TokenIds& to) {
    impl_->encode_plain(normalized(rest), to);
  });
  return ids;
}

std::string Tokenizer::bytes_of(TokenId id) const {
  const auto index = static_cast<std::size_t>(id);
  return index < impl_->bytes.size() ? impl_->bytes[index] : "";
}

std::string Tokenizer::decode(const TokenIds& ids) const {
  TextStream stream;
  std::string bytes;
  for (const TokenId id : ids) bytes += bytes_of(id);
  std::string text = stream.add(bytes);
  return text + stream.finish();
}

// --- ONNX Runtime --------------------------------------------------------------------------------

namespace {

// Version 20 of the API has every function that is used, and the oldest ONNX Runtime that runs a
// package has it. Newer headers and libraries have it too.
constexpr std::uint32_t kApiVersion = 20;

const OrtApi& ort() {
  static const OrtApi* api = OrtGetApiBase()->GetApi(kApiVersion);
  if (api == nullptr) {
    throw ProviderError(std::string("ONNX Runtime is ") + OrtGetApiBase()->GetVersionString() +
                        ", expected 1.20 or newer; install a newer library.");
  }
  return *api;
}

struct Release {
  void operator()(OrtEnv* env) const { ort().ReleaseEnv(env); }
  void operator()(OrtSession* session) const { ort().ReleaseSession(session); }
  void operator()(OrtSessionOptions* options) const { ort().ReleaseSessionOptions(options); }
  void operator()(OrtRunOptions* options) const { ort().ReleaseRunOptions(options); }
  void operator()(OrtMemoryInfo* memory) const { ort().ReleaseMemoryInfo(memory); }
  void operator()(OrtTensorTypeAndShapeInfo* info) const {
    ort().ReleaseTensorTypeAndShapeInfo(info);
  }
  void operator()(OrtStatus* status) const { ort().ReleaseStatus(status); }
  void operator()(OrtValue* value) const { ort().ReleaseValue(value); }
};
template <class T>
using Owned = std::unique_ptr<T, Release>;
/// Keys and values are shared by a conversation and the turn that extends it.
using Value = std::shared_ptr<OrtValue>;

/// A failed call of ONNX Runtime; callers add the file, and the thing to do.
struct OrtFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const Owned<OrtStatus> owned(status);
  throw OrtFailure(first_line(ort().GetErrorMessage(status)));
}

template <class T>
constexpr ONNXTensorElementDataType element_type() {
  if constexpr (std::is_same_v<T, float>) return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if constexpr (std::is_same_v<T, std::int64_t>) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if constexpr (std::is_same_v<T, std::uint8_t>) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

using Shape = std::vector<std::int64_t>;

/// A tensor over memory that outlives it. ONNX Runtime does not write to inputs.
template <class T>
Value tensor_over(const T* data, const Shape& shape) {
  static const Owned<OrtMemoryInfo> memory = [] {
    OrtMemoryInfo* info = nullptr;
    check(ort().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info));
    return Owned<OrtMemoryInfo>(info);
  }();
  const std::int64_t count =
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  OrtValue* value = nullptr;
  check(ort().CreateTensorWithDataAsOrtValue(
      memory.get(), const_cast<T*>(data), static_cast<std::size_t>(count) * sizeof(T), shape.data(),
      shape.size(), element_type<T>(), &value));
  return Value(value, Release());
}

/// A tensor whose memory takes no room until it is written.
Value new_tensor(const Shape& shape, ONNXTensorElementDataType type) {
  OrtAllocator* allocator = nullptr;
  check(ort().GetAllocatorWithDefaultOptions(&allocator));
  OrtValue* value = nullptr;
  check(ort().CreateTensorAsOrtValue(allocator, shape.data(), shape.size(), type, &value));
  return Value(value, Release());
}

template <class T>
std::pair<const T*, std::size_t> content_of(const Value& value) {
  OrtTensorTypeAndShapeInfo* shape = nullptr;
  check(ort().GetTensorTypeAndShape(value.get(), &shape));
  const Owned<OrtTensorTypeAndShapeInfo> owned(shape);
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::size_t count = 0;
  void* data = nullptr;
  check(ort().GetTensorElementType(shape, &type));
  check(ort().GetTensorShapeElementCount(shape, &count));
  if (type != element_type<T>()) throw OrtFailure("an output has another number format");
  check(ort().GetTensorMutableData(value.get(), &data));
  return {static_cast<const T*>(data), count};
}

/// ONNX Runtime's environment, which all models of a process share.
Owned<OrtEnv> new_environment(bool telemetry) {
  // ONNX Runtime's builds report to Microsoft from 1.29 on.
  if (!telemetry) ::setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  OrtEnv* env = nullptr;
  check(ort().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "fastvlm", &env));
  Owned<OrtEnv> owned(env);
  if (!telemetry) check(ort().DisableTelemetryEvents(env));
  return owned;
}

/// The cgroup's limit of processor time as a number of cores; 0 without a limit.
std::size_t cgroup_cores() {
  const fs::path root = "/sys/fs/cgroup";
  std::string quota, period;
  std::ifstream(root / "cpu.max") >> quota >> period;
  if (quota.empty()) {
    std::ifstream(root / "cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream(root / "cpu/cpu.cfs_period_us") >> period;
  }
  const double limit = std::atof(quota.c_str()), unit = std::atof(period.c_str());
  return limit > 0 && unit > 0 ? std::max<std::size_t>(1, static_cast<std::size_t>(limit / unit))
                               : 0;
}

/// Physical cores that this process may use; 0, ONNX Runtime's own choice, where they are unknown.
int physical_cores() {
#ifdef __linux__
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  std::set<std::string> cores;
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(core) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) return 0;
    cores.insert(siblings);
  }
  const std::size_t limit = cgroup_cores();
  return static_cast<int>(limit > 0 ? std::min(limit, cores.size()) : cores.size());
#else
  return 0;
#endif
}

/// A graph that stays open.
class Session {
 public:
  struct Options {
    int threads = 0;
    bool exact_products = false;  ///< int8 weights are rewritten where products saturate
  };

  Session(const OrtEnv& env, const fs::path& path, const Options& options)
      : Session(path, [&](OrtSession** session) {
          return ort().CreateSession(&env, path.c_str(), options_of(options).get(), session);
        }) {}

  /// Open a graph in memory, on one thread.
  Session(const OrtEnv& env, const std::string& graph)
      : Session("a graph in memory", [&](OrtSession** session) {
          return ort().CreateSessionFromArray(&env, graph.data(), graph.size(),
                                              options_of({1, false}).get(), session);
        }) {}

  const std::string& name() const { return name_; }
  bool has_input(const std::string& name) const { return is_among(inputs_, name); }
  bool has_output(const std::string& name) const { return is_among(outputs_, name); }

  using Names = std::vector<const char*>;
  using Values = std::vector<Value>;

  /// Run the graph once.
  ///
  /// @param outputs  null values are replaced by new tensors; others are written in place.
  /// @param returns_memory  release the activations' memory after the run.
  void run(const Names& input_names, const Values& inputs, const Names& output_names,
           Values& outputs, bool returns_memory = false) const {
    std::vector<const OrtValue*> in;
    std::vector<OrtValue*> out;
    for (const Value& value : inputs) in.push_back(value.get());
    for (const Value& value : outputs) out.push_back(value.get());
    try {
      check(ort().Run(session_.get(), returns_memory ? returning().get() : nullptr,
                      input_names.data(), in.data(), in.size(), output_names.data(), out.size(),
                      out.data()));
    } catch (const OrtFailure& error) {
      throw ProviderError(name_ + ": failed while it ran (" + error.what() +
                          "); if memory was short, free some, or take a smaller variant.");
    }
    for (std::size_t i = 0; i < outputs.size(); i++) {
      if (outputs[i] == nullptr) outputs[i] = Value(out[i], Release());
    }
  }

 private:
  template <class Create>
  Session(const fs::path& path, const Create& create) : name_(path.filename().u8string()) {
    try {
      OrtSession* session = nullptr;
      check(create(&session));
      session_.reset(session);
      inputs_ = names_of(ort().SessionGetInputCount, ort().SessionGetInputName);
      outputs_ = names_of(ort().SessionGetOutputCount, ort().SessionGetOutputName);
    } catch (const OrtFailure& error) {
      throw PackageError(text_of(path) + ": ONNX Runtime " + OrtGetApiBase()->GetVersionString() +
                         " cannot load it (" + error.what() + "); export the package again.");
    }
  }

  template <class Count, class Name>
  std::vector<std::string> names_of(const Count& count_of, const Name& name_of) const {
    OrtAllocator* allocator = nullptr;
    check(ort().GetAllocatorWithDefaultOptions(&allocator));
    std::size_t count = 0;
    check(count_of(session_.get(), &count));
    std::vector<std::string> names;
    for (std::size_t i = 0; i < count; i++) {
      char* name = nullptr;
      check(name_of(session_.get(), i, allocator, &name));
      names.emplace_back(name);
      check(ort().AllocatorFree(allocator, name));
    }
    return names;
  }

  static bool is_among(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  }

  static Owned<OrtSessionOptions> options_of(const Options& given) {
    OrtSessionOptions* options = nullptr;
    check(ort().CreateSessionOptions(&options));
    Owned<OrtSessionOptions> owned(options);
    check(ort().SetIntraOpNumThreads(options, given.threads));
    check(ort().SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR));
    // The memory pattern takes more memory for the vision encoder, and is no faster.
    check(ort().DisableMemPattern(options));
    // Sessions take turns: spinning workers of an idle session take a core from the busy session.
    check(ort().AddSessionConfigEntry(options, "session.force_spinning_stop", "1"));
    if (given.exact_products) {
      check(ort().AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
    }
    return owned;
  }

  static const Owned<OrtRunOptions>& returning() {
    static const Owned<OrtRunOptions> options = [] {
      OrtRunOptions* made = nullptr;
      check(ort().CreateRunOptions(&made));
      Owned<OrtRunOptions> owned(made);
      check(ort().AddRunConfigEntry(made, "memory.enable_memory_arena_shrinkage", "cpu:0"));
      return owned;
    }();
    return options;
  }

  std::string name_;
  Owned<OrtSession> session_;
  std::vector<std::string> inputs_, outputs_;
};

/// A graph of one MatMulInteger: uint8 [4, 64] times int8 [64, 32], whose weights are all 127.
std::string saturation_graph() {
  constexpr std::string_view head(
      "\x08\n\x12\x0c"
      "fastvlm-onnx:\xef\x10\n\x1d\n\x01"
      "a\n\x06weight\x12\x01y\"\rMatMulInteger\x12\x10saturation_probe*\x91\x10\x08@\x08 \x10\x03"
      "B\x06weightJ\x80\x10",
      88);
  constexpr std::string_view tail(
      "Z\x13\n\x01"
      "a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x04\n\x02\x08@b\x13\n\x01y\x12\x0e\n\x0c\x08\x06"
      "\x12\x08\n\x02\x08\x04\n\x02\x08 B\x04\n\x00\x10\x15",
      48);
  return std::string(head) + std::string(64 * 32, '\x7f') + std::string(tail);
}

/// Whether uint8 x int8 products saturate on this processor (AVX2 without VNNI).
bool int8_products_saturate(const OrtEnv& env) {
  // Lets a processor without the fault run the graphs as a processor with it does.
  const char* forced = std::getenv("FASTVLM_ONNX_INT8_SATURATES");
  if (forced != nullptr && *forced != '\0') return std::string_view(forced) == "1";
  const Bytes activations(4 * 64, 255);
  const Session session(env, saturation_graph());
  Session::Values products = {nullptr};
  session.run({"a"}, {tensor_over(activations.data(), {4, 64})}, {"y"}, products);
  void* data = nullptr;
  check(ort().GetTensorMutableData(products[0].get(), &data));
  const auto* sums = static_cast<const std::int32_t*>(data);
  return std::any_of(sums, sums + 4 * 32, [](std::int32_t sum) { return sum != 64 * 127 * 255; });
}

// --- the language model --------------------------------------------------------------------------

float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000U} << 16;
  const std::uint32_t exponent = half >> 10 & 31U, fraction = half & 1023U;
  if (exponent == 0) {
    const float small = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -small : small;
  }
  const std::uint32_t bits = sign | (exponent == 31 ? 255U : exponent + 112) << 23 | fraction << 13;
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// A matrix in a .npy file, in rows; the file stays mapped.
class Matrix {
 public:
  explicit Matrix(const fs::path& path) : file_(map_package_file(path)) {
    const auto refuse = [&](const std::string& fault) {
      return PackageError(text_of(path) + ": " + fault + "; export the package again.");
    };
    constexpr std::string_view magic("\x93NUMPY\x01", 7);
    if (file_.size() < 10 || file_.text().substr(0, magic.size()) != magic) {
      throw refuse("not a .npy file of version 1");
    }
    const std::size_t length = file_.data()[8] | std::size_t{file_.data()[9]} << 8;
    offset_ = 10 + length;
    if (offset_ > file_.size() || length > 10'000) throw refuse("its header is cut off");
    std::string header(file_.text().substr(10, length));
    header.erase(std::remove(header.begin(), header.end(), ' '), header.end());
    const std::string name = std::string(after(header, "'descr':'")).substr(0, 3);
    if (name == "<f2") type_ = Type::float16;
    if (name == "<f4") type_ = Type::float32;
    if (name == "|u1") type_ = Type::uint8;
    const bool has_type = name == "<f2" || name == "<f4" || name == "|u1";
    if (!has_type || after(header, "'fortran_order':False").empty() ||
        !read_shape(after(header, "'shape':("))) {
      throw refuse("its header is no matrix of <f2, <f4 or |u1 in C order");
    }
    const auto width = static_cast<std::size_t>(name[2] - '0');
    const std::size_t expected = offset_ + rows * columns * width;
    if (expected != file_.size()) {
      throw refuse("has " + std::to_string(file_.size()) + " bytes, and its header describes " +
                   std::to_string(expected));
    }
  }

  std::size_t rows = 0, columns = 0;
  bool is_uint8() const { return type_ == Type::uint8; }

  /// The value at a flat index, as it is stored.
  float at(std::size_t index) const {
    const std::uint8_t* begin = file_.data() + offset_;
    if (type_ == Type::uint8) return begin[index];
    if (type_ == Type::float16) return float_of_half(read<std::uint16_t>(begin, index));
    return read<float>(begin, index);
  }

 private:
  /// The text of a header behind a key; empty where the key is missing.
  static std::string_view after(std::string_view header, std::string_view key) {
    const std::size_t found = header.find(key);
    return found == std::string_view::npos ? "" : header.substr(found + key.size());
  }

  /// Read "ROWS,COLUMNS)". Returns false where the text begins in another way, or where the
  /// product of the sizes could overflow.
  bool read_shape(std::string_view text) {
    constexpr std::uint32_t largest = 999'999'999;
    std::uint32_t sizes[2] = {};
    const char* at = text.data();
    const char* const end = text.data() + text.size();
    for (const auto& [size, stop] : {std::pair(&sizes[0], ','), std::pair(&sizes[1], ')')}) {
      const auto [next, fault] = std::from_chars(at, end, *size);
      if (fault != std::errc() || *size > largest || next == end || *next != stop) return false;
      at = next + 1;
    }
    rows = sizes[0];
    columns = sizes[1];
    return true;
  }

  template <class T>
  static T read(const std::uint8_t* begin, std::size_t index) {
    T value;
    std::memcpy(&value, begin + index * sizeof(T), sizeof(T));
    return value;
  }

  enum class Type { float16, float32, uint8 };

  MappedFile file_;
  std::size_t offset_ = 0;
  Type type_ = Type::float32;
};

/// Token embeddings: float16, float32, or uint8 around 128 with a scale for each block of a row.
class TokenEmbedding {
 public:
  /// @param scales  the scales of uint8 rows; empty where the package has none.
  TokenEmbedding(const fs::path& path, const fs::path& scales, const DecoderFormat& decoder)
      : hidden_size_(static_cast<std::size_t>(decoder.hidden_size)), rows_(path) {
    bool fits = rows_.rows == static_cast<std::size_t>(decoder.vocab_size);
    if (rows_.is_uint8()) {
      if (!scales.empty()) scales_.emplace(scales);
      fits = fits && scales_ && rows_.columns >= hidden_size_ && !scales_->is_uint8() &&
             scales_->rows == rows_.rows && scales_->columns > 0 &&
             rows_.columns % scales_->columns == 0;
    } else {
      fits = fits && rows_.columns == hidden_size_;
    }
    if (!fits) {
      throw PackageError(text_of(path) + ": holds [" + std::to_string(rows_.rows) + ", " +
                         std::to_string(rows_.columns) + "], expected [" +
                         std::to_string(decoder.vocab_size) + ", " + std::to_string(hidden_size_) +
                         "], or uint8 with its scales; export the package again.");
    }
  }

  /// Append the embeddings of token ids to float32 [rows, hidden_size].
  void append(const TokenIds& ids, Floats& to) const {
    for (const TokenId id : ids) {
      const auto row = static_cast<std::size_t>(id);
      // A tokenizer may know a token that the embeddings lack.
      if (row >= rows_.rows) {
        throw PackageError("token " + std::to_string(id) +
                           " has no embedding, expected ids below " + std::to_string(rows_.rows) +
                           "; export the package again.");
      }
      for (std::size_t i = 0; i < hidden_size_; i++) {
        const float value = rows_.at(row * rows_.columns + i);
        if (!scales_) {
          to.push_back(value);
          continue;
        }
        const std::size_t block = i / (rows_.columns / scales_->columns);
        to.push_back((value - 128.0F) * scales_->at(row * scales_->columns + block));
      }
    }
  }

 private:
  std::size_t hidden_size_;
  Matrix rows_;
  std::optional<Matrix> scales_;
};

/// One sequence: its keys and values, and the decoder's outputs of its last position.
struct Sequence {
  std::int64_t length = 0;
  std::int64_t capacity = 0;
  std::vector<Value> keys_values;
  std::vector<std::int64_t> attention_mask;  ///< 1 for each position that was run
  Floats hidden_states;  ///< float32 [hidden_size], where lm_head is a graph of its own
  Floats logits;         ///< float32 [vocab_size]
  /// Inputs of the last positions that ran one by one since the last run of several, float32
  /// [positions, hidden_size]; no more than a second pass reads.
  Floats steps;
};

/// A token with the largest logit, and by how much that leads the second largest.
struct Likeliest {
  TokenId token = 0;
  float lead = 0;
};

Likeliest likeliest_of(const Floats& logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  float second = -std::numeric_limits<float>::infinity();
  for (auto logit = logits.begin(); logit != logits.end(); ++logit) {
    if (logit != best) second = std::max(second, *logit);
  }
  return {best - logits.begin(), *best - second};
}

TokenId largest(const Floats& logits) { return likeliest_of(logits).token; }

/// The decoder's graphs: embeddings in, logits or the likeliest token out.
class Decoder {
 public:
  Decoder(const DecoderFormat& sizes, const std::string& cache_dtype, Session session,
          std::optional<Session> prefill, std::optional<Session> screen,
          std::optional<SecondPass> second_pass, std::function<Session()> open_lm_head)
      : sizes_(sizes),
        session_(std::move(session)),
        prefill_(std::move(prefill)),
        screen_(std::move(screen)),
        prefills_whole_prompts_(prefill_ && screen_ && prefill_->has_output("hidden_states")),
        second_pass_(prefills_whole_prompts_ ? second_pass : std::nullopt),
        open_lm_head_(std::move(open_lm_head)) {
    if (cache_dtype == "float32") {
      cache_type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    } else if (cache_dtype == "float16") {
      cache_type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    } else if (cache_dtype == "bfloat16") {
      cache_type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    } else {
      throw PackageError("cache_dtype is " + cache_dtype +
                         ", expected float32, float16 or bfloat16; export the package again.");
    }
    for (std::int64_t i = 0; i < sizes.num_hidden_layers; i++) {
      for (const char* part : {".key", ".value"}) {
        past_.push_back("past_key_values." + std::to_string(i) + part);
        if (!session_.has_input(past_.back())) {
          throw PackageError(session_.name() + ": has no input " + past_.back() + ", and the " +
                             "manifest's num_hidden_layers is " +
                             std::to_string(sizes.num_hidden_layers) +
                             "; export the package again.");
        }
        present_.push_back("present." + std::to_string(i) + part);
      }
    }
  }

  Sequence new_sequence(std::int64_t capacity) const {
    Sequence sequence;
    sequence.capacity = capacity;
    // A standard decoder returns keys and values that are longer than those it was given.
    const std::int64_t positions = sizes_.is_standard ? 0 : capacity;
    const Shape shape = {1, sizes_.num_key_value_heads, positions, sizes_.head_dim};
    try {
      for (std::size_t i = 0; i < past_.size(); i++) {
        sequence.keys_values.push_back(new_tensor(shape, cache_type_));
      }
    } catch (const OrtFailure& error) {
      throw ProviderError("no memory for keys and values of " + std::to_string(capacity) +
                          " positions (" + error.what() +
                          "); ask for fewer new tokens, or free some memory.");
    }
    sequence.hidden_states.resize(static_cast<std::size_t>(sizes_.hidden_size));
    sequence.logits.resize(static_cast<std::size_t>(sizes_.vocab_size));
    return sequence;
  }

  /// Append positions, float32 [positions, hidden_size], to a sequence.
  void run(const Floats& embeds, Sequence& sequence) const {
    const std::int64_t positions = static_cast<std::int64_t>(embeds.size()) / sizes_.hidden_size;
    if (positions > 1) sequence.steps.clear();
    if (!prefill_ || positions == 1) {
      append(session_, embeds.data(), positions, sequence);
      if (second_pass_) remember_step(embeds, sequence.steps);
    } else if (prefills_whole_prompts_) {
      append(*prefill_, embeds.data(), positions, sequence);
    } else {
      append(*prefill_, embeds.data(), positions - 1, sequence);
      append(session_, embeds.data() + (positions - 1) * sizes_.hidden_size, 1, sequence);
    }
  }

  /// The token with the largest logit at the last position.
  TokenId likeliest(Sequence& sequence) const {
    Likeliest found = find_likeliest(sequence);
    if (is_close(found, sequence)) {
      run_again(sequence);
      found = find_likeliest(sequence);
    }
    return found.token;
  }

  /// All logits of the last position.
  const Floats& logits(Sequence& sequence) const {
    compute_logits(sequence);
    if (is_close(likeliest_of(sequence.logits), sequence)) {
      run_again(sequence);
      compute_logits(sequence);
    }
    return sequence.logits;
  }

 private:
  /// Keep the input of a step for a second pass, and forget the oldest that none would read.
  void remember_step(const Floats& embeds, Floats& steps) const {
    steps.insert(steps.end(), embeds.begin(), embeds.end());
    const auto most = static_cast<std::size_t>(second_pass_->positions * sizes_.hidden_size);
    if (steps.size() > most) {
      steps.erase(steps.begin(), steps.begin() + sizes_.hidden_size);
    }
  }

  /// Whether the prefill graph is to decide between the largest logits.
  bool is_close(const Likeliest& found, const Sequence& sequence) const {
    return second_pass_ && !sequence.steps.empty() && found.lead < second_pass_->margin;
  }

  /// Run the last steps by the prefill graph, which replaces their keys and values.
  void run_again(Sequence& sequence) const {
    const Floats embeds = std::exchange(sequence.steps, {});
    const std::int64_t positions = static_cast<std::int64_t>(embeds.size()) / sizes_.hidden_size;
    sequence.length -= positions;
    append(*prefill_, embeds.data(), positions, sequence, false);
  }

  Likeliest find_likeliest(Sequence& sequence) const {
    if (!screen_) return likeliest_of(sequence.logits);
    for (const std::int64_t candidates : {64, 1024}) {
      if (const auto found = screened(sequence, std::min(candidates, sizes_.vocab_size))) {
        return *found;
      }
    }
    compute_logits(sequence);
    return likeliest_of(sequence.logits);
  }

  void compute_logits(Sequence& sequence) const {
    if (!screen_) return;
    std::call_once(lm_head_opened_, [this] { lm_head_.emplace(open_lm_head_()); });
    Session::Values outputs = {tensor_over(sequence.logits.data(), {1, 1, sizes_.vocab_size})};
    lm_head_->run({"hidden_states"}, {hidden_states(sequence)}, {"logits"}, outputs);
  }

  void append(const Session& session, const float* embeds, std::int64_t positions,
              Sequence& sequence, bool is_prompt = true) const {
    const std::int64_t total = sequence.length + positions;
    sequence.attention_mask.resize(static_cast<std::size_t>(total), 1);
    Session::Names inputs = {"inputs_embeds", "attention_mask"}, outputs;
    Session::Values in = {tensor_over(embeds, {1, positions, sizes_.hidden_size}),
                          tensor_over(sequence.attention_mask.data(), {1, total})};
    for (const auto& name : past_) inputs.push_back(name.c_str());
    for (const auto& name : present_) outputs.push_back(name.c_str());
    in.insert(in.end(), sequence.keys_values.begin(), sequence.keys_values.end());
    // The fused decoder finds past and present on one buffer, and appends in place.
    Session::Values out = sizes_.is_standard ? Session::Values(past_.size()) : sequence.keys_values;
    if (session.has_output("logits")) {
      outputs.push_back("logits");
      out.push_back(tensor_over(sequence.logits.data(), {1, 1, sizes_.vocab_size}));
    } else if (session.has_output("hidden_states")) {
      outputs.push_back("hidden_states");
      out.push_back(hidden_states(sequence));
    }
    // A prompt's activations take many times the memory of a step's.
    session.run(inputs, in, outputs, out, is_prompt && positions > 1);
    out.resize(past_.size());
    sequence.keys_values = std::move(out);
    sequence.length = total;
  }

  /// The likeliest token by a screen in int4, where no token outside its candidates can be
  /// likelier.
  std::optional<Likeliest> screened(Sequence& sequence, std::int64_t candidates) const {
    constexpr double safe_margin = 8.0;  // times the root mean square of the screen's errors
    Session::Values outputs(3);
    screen_->run({"hidden_states", "num_candidates"},
                 {hidden_states(sequence), tensor_over(&candidates, {1})},
                 {"token_ids", "token_logits", "screened_logits"}, outputs);
    const auto [tokens, count] = content_of<std::int64_t>(outputs[0]);
    const auto [exact, exact_count] = content_of<float>(outputs[1]);
    const auto [rough, rough_count] = content_of<float>(outputs[2]);
    if (count == 0 || exact_count != count || rough_count != count) {
      throw OrtFailure("the screen's outputs have different lengths");
    }
    std::size_t best = 0;
    float second = -std::numeric_limits<float>::infinity();
    double squares = 0;
    float least = std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < count; i++) {
      const bool is_better =
          exact[i] > exact[best] || (exact[i] == exact[best] && tokens[i] < tokens[best]);
      if (i > 0) second = std::max(second, is_better ? exact[best] : exact[i]);
      if (is_better) best = i;
      squares += std::pow(double{exact[i]} - double{rough[i]}, 2);
      least = std::min(least, rough[i]);
    }
    const double error = std::sqrt(squares / static_cast<double>(count));
    if (double{exact[best]} - double{least} < safe_margin * error) return std::nullopt;
    return Likeliest{tokens[best], exact[best] - second};
  }

  Value hidden_states(const Sequence& sequence) const {
    return tensor_over(sequence.hidden_states.data(), {1, 1, sizes_.hidden_size});
  }

  DecoderFormat sizes_;
  Session session_;
  std::optional<Session> prefill_, screen_;
  bool prefills_whole_prompts_;
  std::optional<SecondPass> second_pass_;
  std::function<Session()> open_lm_head_;  // greedy answers need it only when the screen is unsure
  mutable std::once_flag lm_head_opened_;
  mutable std::optional<Session> lm_head_;
  ONNXTensorElementDataType cache_type_;
  std::vector<std::string> past_, present_;
};

/// Draws tokens by temperature, top-k and top-p, in the order of transformers' processors.
class Sampler {
 public:
  explicit Sampler(const GenerationOptions& options)
      : options_(options), random_(options.seed ? *options.seed : std::random_device()()) {}

  TokenId draw(const Floats& logits) {
    if (options_.temperature == 0) return largest(logits);
    // std::sort reads beyond its range where NaN makes an order that is none.
    if (std::any_of(logits.begin(), logits.end(), [](float logit) { return std::isnan(logit); })) {
      throw ProviderError("the decoder's logits are not numbers; take another variant.");
    }
    std::vector<std::size_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), std::size_t{0});
    const auto likelier = [&](std::size_t one, std::size_t other) {
      return logits[one] > logits[other] || (logits[one] == logits[other] && one < other);
    };
    const auto k = static_cast<std::size_t>(options_.top_k);
    if (k > 0 && k < ids.size()) {
      std::nth_element(ids.begin(), ids.begin() + options_.top_k - 1, ids.end(), likelier);
      const float least = logits[ids[k - 1]];  // tokens that tie with the k-th stay in
      ids.erase(std::remove_if(ids.begin(), ids.end(),
                               [&](std::size_t id) { return logits[id] < least; }),
                ids.end());
    }
    std::sort(ids.begin(), ids.end(), likelier);
    std::vector<double> weights;
    double sum = 0;
    for (const std::size_t id : ids) {
      weights.push_back(
          std::exp((double{logits[id]} - double{logits[ids[0]]}) / options_.temperature));
      sum += weights.back();
    }
    std::size_t kept = 0;
    double before = 0;
    while (kept < ids.size() && (options_.top_p >= 1 || before / sum < options_.top_p)) {
      before += weights[kept++];
    }
    // 53 random bits make a double in [0, 1), the same with every standard library.
    double point = static_cast<double>(random_() >> 11) * std::ldexp(1.0, -53) * before;
    std::size_t drawn = 0;
    while (drawn + 1 < kept && point >= weights[drawn]) point -= weights[drawn++];
    return static_cast<TokenId>(ids[drawn]);
  }

 private:
  const GenerationOptions& options_;
  std::mt19937_64 random_;
};

// --- answers -------------------------------------------------------------------------------------

void check_options(const GenerationOptions& options) {
  const auto expect = [](bool fits, const char* name, double found, const char* expected) {
    if (fits) return;
    std::ostringstream message;
    message << name << " is " << found << "; expected " << expected << ".";
    throw InputError(message.str());
  };
  expect(options.max_new_tokens >= 1, "max_new_tokens", options.max_new_tokens, "1 or more");
  expect(options.temperature >= 0 && std::isfinite(options.temperature), "temperature",
         options.temperature, "0 or more");
  expect(options.top_k >= 0, "top_k", options.top_k, "0 (off) or more");
  expect(options.top_p > 0 && options.top_p <= 1, "top_p", options.top_p, "above 0 and at most 1");
}

void check_prompt(std::string_view prompt) {
  check_utf8(prompt);
  if (is_blank(prompt)) {
    throw InputError("the prompt is empty; ask something, for example \"Describe the image.\".");
  }
}

}  // namespace

struct Model::Impl {
  Manifest manifest;
  int threads = 0;
  Owned<OrtEnv> env;
  std::optional<Tokenizer> tokenizer;
  std::optional<TokenEmbedding> embedding;
  std::optional<Session> vision_encoder, projector;
  std::optional<Decoder> decoder;
  double load_seconds = 0;

  Impl(const fs::path& folder, const LoadOptions& options) {
    const auto began = Clock::now();
    if (options.threads < 0 || options.image_size < 0) {
      throw InputError("threads is " + std::to_string(options.threads) + " and image_size " +
                       std::to_string(options.image_size) + "; expected 0 (default) or more.");
    }
    manifest = read_manifest(folder, options, OrtGetApiBase()->GetVersionString());
    threads = options.threads > 0 ? options.threads : physical_cores();
    try {
      env = new_environment(options.telemetry);
      open();
    } catch (const OrtFailure& error) {
      throw ProviderError(text_of(folder) + ": ONNX Runtime failed (" + error.what() +
                          "); if memory was short, free some, or take a smaller variant.");
    }
    load_seconds = seconds_between(began, Clock::now());
  }

  /// Open all graphs at once. Weights are hashed meanwhile; until then they are but numbers.
  void open() {
    const Variant& variant = manifest.variant;
    std::set<std::string> weights = {variant.embed_tokens}, others = {kTokenizerFile};
    const std::string scales = scale_file(variant.embed_tokens);
    if (manifest.files.count(scales) > 0) weights.insert(scales);
    bool has_int8_products = false;
    for (const auto& graph : variant.graphs()) {
      const GraphFacts& facts = manifest.graphs.at(graph);
      others.insert(graph);
      weights.insert(facts.weights.begin(), facts.weights.end());
      has_int8_products = has_int8_products || facts.int8_products;
    }
    for (const auto& name : weights) check_size(manifest, name);
    for (const auto& name : others) {
      check_size(manifest, name);
      check_hash(manifest, name);
    }
    const bool saturates = has_int8_products && int8_products_saturate(*env);

    const auto open_graph = [this, saturates](const std::string& file) {
      const Session::Options options = {threads,
                                        saturates && manifest.graphs.at(file).int8_products};
      return Session(*env, manifest.folder / file, options);
    };
    const auto begin = [&](const std::string& file) {
      return std::async(std::launch::async, open_graph, file);
    };
    auto hashes = std::async(std::launch::async, [&] {
      for (const auto& name : weights) check_hash(manifest, name);
    });
    auto text =
        std::async(std::launch::async, [&] { return Tokenizer(manifest.folder / kTokenizerFile); });
    auto vision = begin(variant.vision_encoder), projection = begin(variant.projector);
    auto layers = begin(variant.decoder);
    std::future<Session> prefill, screen;
    if (!variant.prefill.empty()) prefill = begin(variant.prefill);
    if (variant.is_split()) screen = begin(variant.lm_head_screen);

    const auto when_opened = [](std::future<Session>& session) {
      return session.valid() ? std::optional<Session>(session.get()) : std::nullopt;
    };
    hashes.get();  // an altered file explains whatever else fails
    tokenizer.emplace(text.get());
    embedding.emplace(manifest.folder / variant.embed_tokens,
                      weights.count(scales) > 0 ? manifest.folder / scales : fs::path(),
                      manifest.decoder);
    vision_encoder.emplace(vision.get());
    projector.emplace(projection.get());
    decoder.emplace(manifest.decoder, manifest.graphs.at(variant.decoder).cache_dtype, layers.get(),
                    when_opened(prefill), when_opened(screen), variant.second_pass,
                    [open_graph, file = variant.lm_head] { return open_graph(file); });
  }

  ImageFeatures encode(const Image& image) const {
    const auto began = Clock::now();
    const std::int64_t side = manifest.image_size;
    const Floats pixel_values = preprocess(image, manifest.image_size);
    const auto preprocessed = Clock::now();
    Session::Values hidden_states = {nullptr}, features = {nullptr};
    ImageFeatures result;
    try {
      vision_encoder->run({"pixel_values"}, {tensor_over(pixel_values.data(), {1, 3, side, side})},
                          {"image_hidden_states"}, hidden_states);
      projector->run({"image_hidden_states"}, hidden_states, {"image_features"}, features);
      const auto [rows, count] = content_of<float>(features[0]);
      result.rows.assign(rows, rows + count);
    } catch (const OrtFailure& error) {
      throw ProviderError(std::string("the image could not be encoded (") + error.what() +
                          "); if memory was short, free some, or take a smaller variant.");
    }
    result.preprocess_seconds = seconds_between(began, preprocessed);
    result.vision_seconds = seconds_between(preprocessed, Clock::now());
    check_features(result);
    return result;
  }

  void check_features(const ImageFeatures& image) const {
    const std::int64_t expected = manifest.num_image_tokens * manifest.decoder.hidden_size;
    if (static_cast<std::int64_t>(image.rows.size()) != expected) {
      throw InputError("image features hold " + std::to_string(image.rows.size()) +
                       " values, expected " + std::to_string(expected) +
                       "; encode the image with this model.");
    }
  }

  /// Append a user's turn, up to the place where the answer begins.
  void append_turn(const ImageFeatures* image, std::string_view prompt, Floats& embeds) const {
    std::string question(prompt);
    if (image != nullptr) {
      check_features(*image);
      embeds.insert(embeds.end(), image->rows.begin(), image->rows.end());
      question = manifest.prompt.after_image + question;
    }
    embedding->append(tokenizer->encode(question), embeds);
    embedding->append(
        tokenizer->encode_template(manifest.prompt.end_of_turn + manifest.prompt.assistant),
        embeds);
  }

  std::int64_t positions(const Floats& embeds) const {
    return static_cast<std::int64_t>(embeds.size()) / manifest.decoder.hidden_size;
  }

  /// Positions that the context leaves for an answer, at least 1.
  std::int64_t room_after(std::int64_t prompt_positions) const {
    const std::int64_t room = manifest.decoder.context_length - prompt_positions;
    if (room < 1) {
      throw PromptTooLongError(
          "the prompt, with images and earlier turns, has " + std::to_string(prompt_positions) +
          " tokens, and the context holds " + std::to_string(manifest.decoder.context_length) +
          "; shorten the prompt by at least " + std::to_string(1 - room) + " tokens.");
    }
    return room;
  }

  /// Run a prompt and answer it. `image` only says where time went.
  ///
  /// @param embeds  the positions that the sequence lacks.
  Generation answer(Sequence& sequence, const Floats& embeds, const GenerationOptions& options,
                    const OnText& on_text, Clock::time_point called,
                    const ImageFeatures* image) const {
    const std::int64_t prompt_end = sequence.length + positions(embeds);
    const std::int64_t most =
        std::min<std::int64_t>(options.max_new_tokens, room_after(prompt_end));
    const bool is_greedy = options.temperature == 0 && !options.on_logits;
    const TokenIds& eos = manifest.decoder.eos_token_ids;
    Sampler sampler(options);
    TextStream characters;
    StrippedStream stripped;
    Generation result;
    result.prompt_tokens = static_cast<int>(prompt_end);

    const auto show = [&](const std::string& text) {
      const std::string shown = stripped.add(text);
      result.text += shown;
      const bool goes_on = shown.empty() || !on_text || on_text(shown);
      if (!goes_on && result.finish_reason.empty()) result.finish_reason = "cancelled";
    };
    const auto next_token = [&]() -> TokenId {
      if (is_greedy) return decoder->likeliest(sequence);
      const Floats& logits = decoder->logits(sequence);
      if (options.on_logits) options.on_logits(logits);
      return sampler.draw(logits);
    };

    try {
      const auto prefill_began = Clock::now();
      decoder->run(embeds, sequence);
      TokenId token = next_token();
      const auto first_token = Clock::now();
      auto last_token = first_token;
      std::int64_t steps = 0;
      Floats embed;
      while (true) {
        if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
          result.finish_reason = "stop";
          break;
        }
        result.token_ids.push_back(token);
        show(characters.add(tokenizer->bytes_of(token)));
        if (!result.finish_reason.empty()) break;
        if (static_cast<std::int64_t>(result.token_ids.size()) == most) {
          result.finish_reason = "length";
          break;
        }
        embed.clear();
        embedding->append({token}, embed);
        decoder->run(embed, sequence);
        token = next_token();
        last_token = Clock::now();
        steps++;
      }
      show(characters.finish());
      Timings& timings = result.timings;
      timings.load = load_seconds;
      timings.preprocess = image != nullptr ? image->preprocess_seconds : 0;
      timings.vision = image != nullptr ? image->vision_seconds : 0;
      timings.prefill = seconds_between(prefill_began, first_token);
      timings.first_token = seconds_between(called, first_token);
      timings.decode = seconds_between(first_token, last_token);
      if (steps > 0) timings.tokens_per_second = static_cast<double>(steps) / timings.decode;
    } catch (const OrtFailure& error) {
      throw ProviderError(std::string("the decoder failed (") + error.what() +
                          "); if memory was short, free some, or take a smaller variant.");
    }
    return result;
  }

  /// Answer one prompt. The image was encoded within the call where `called` lies before that.
  Generation generate(const ImageFeatures& image, std::string_view prompt,
                      const GenerationOptions& options, const OnText& on_text,
                      Clock::time_point called) const {
    const PromptFormat& format = manifest.prompt;
    Floats embeds;
    embedding->append(tokenizer->encode_template(format.system + format.user), embeds);
    append_turn(&image, prompt, embeds);
    const std::int64_t room = room_after(positions(embeds));
    Sequence sequence = decoder->new_sequence(positions(embeds) +
                                              std::min<std::int64_t>(options.max_new_tokens, room));
    return answer(sequence, embeds, options, on_text, called, &image);
  }
};

Model::Model(const fs::path& folder, const LoadOptions& options)
    : impl_(std::make_unique<Impl>(folder, options)) {}
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

ImageFeatures Model::encode_image(const Image& image) const { return impl_->encode(image); }

Generation Model::generate(const Image& image, std::string_view prompt,
                           const GenerationOptions& options, const OnText& on_text) const {
  const auto called = Clock::now();
  check_options(options);
  check_prompt(prompt);
  return impl_->generate(impl_->encode(image), prompt, options, on_text, called);
}

Generation Model::generate(const ImageFeatures& image, std::string_view prompt,
                           const GenerationOptions& options, const OnText& on_text) const {
  const auto called = Clock::now();
  check_options(options);
  check_prompt(prompt);
  return impl_->generate(image, prompt, options, on_text, called);
}

const Tokenizer& Model::tokenizer() const { return *impl_->tokenizer; }
const std::string& Model::name() const { return impl_->manifest.name; }
const std::string& Model::variant() const { return impl_->manifest.variant.name; }
int Model::image_size() const { return impl_->manifest.image_size; }

// --- conversations -------------------------------------------------------------------------------

struct Chat::Impl {
  const Model::Impl& model;
  Sequence sequence;
  /// Tokens of the last answer that are not in the sequence: its last token is never run.
  TokenIds pending;

  explicit Impl(const Model::Impl& from) : model(from) {
    if (model.manifest.prompt.end_of_turn.empty()) {
      throw InputError("the package's prompt template has no turns: it cannot converse.");
    }
    reset();
  }

  void reset() {
    sequence = model.decoder->new_sequence(model.manifest.decoder.context_length);
    pending.clear();
  }

  Generation ask(std::string_view prompt, const Image* image, const GenerationOptions& options,
                 const OnText& on_text) {
    const auto called = Clock::now();
    check_options(options);
    check_prompt(prompt);
    const PromptFormat& format = model.manifest.prompt;
    std::optional<ImageFeatures> features;
    if (image != nullptr) features = model.encode(*image);
    const ImageFeatures* encoded = features ? &*features : nullptr;

    Floats embeds;
    const bool is_first = sequence.length == 0;
    if (!is_first) model.embedding->append(pending, embeds);
    model.embedding->append(
        model.tokenizer->encode_template(is_first ? format.system : format.end_of_turn), embeds);
    model.embedding->append(model.tokenizer->encode_template(format.user), embeds);
    model.append_turn(encoded, prompt, embeds);

    // Keys and values beyond the length are never read, so an error leaves the turns as they were.
    Sequence draft = sequence;
    Generation result = model.answer(draft, embeds, options, on_text, called, encoded);
    const auto run = static_cast<std::size_t>(draft.length - result.prompt_tokens);
    pending.assign(result.token_ids.begin() + static_cast<std::ptrdiff_t>(run),
                   result.token_ids.end());
    sequence = std::move(draft);
    return result;
  }
};

Chat Model::chat() const { return Chat(std::make_unique<Chat::Impl>(*impl_)); }

Chat::Chat(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Chat::~Chat() = default;
Chat::Chat(Chat&&) noexcept = default;
Chat& Chat::operator=(Chat&&) noexcept = default;

Generation Chat::ask(std::string_view prompt, const Image* image, const GenerationOptions& options,
                     const OnText& on_text) {
  return impl_->ask(prompt, image, options, on_text);
}

void Chat::reset() { impl_->reset(); }

}  // namespace fastvlm
