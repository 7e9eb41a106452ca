#include <iostream>

#include "fastvlm.hpp"

int main(int, char** argv) {
  try {
    const fastvlm::Model model(argv[1]);
    const fastvlm::Image image = fastvlm::read_image(argv[2]);
    model.generate(image, "Describe the image.", {}, [](std::string_view text) {
      std::cout << text << std::flush;
      return true;  // false ends the answer
    });
    std::cout << "\n";

    fastvlm::Chat chat = model.chat();
    chat.ask("What is in the image?", &image);
    std::cout << chat.ask("What shape is the pink object?").text << "\n";
  } catch (const fastvlm::Error& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
