"""A package that is there already, and what is added to it.

Everything is exported anew, into the folder that then replaces the old one: files that variants
share hold other tensors once there are more of them.
"""

from collections.abc import Sequence
from pathlib import Path

from fastvlm_onnx.agreement import VariantAgreement
from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.names import DECODER, graph_file
from fastvlm_onnx.package import Manifest, read_manifest


class Addition:
    """What a package holds, and what it is to hold.

    Attributes:
        old: its manifest.
        precisions: what it has, then what it lacks.
        image_sizes: likewise, the first being the default.
    """

    def __init__(
        self, folder: Path, precisions: Sequence[str], image_sizes: Sequence[int], operators: str
    ) -> None:
        """Read the package.

        Raises:
            PackageError: the folder is no package, or its decoders are made of other operators.
            InputError: nothing is lacking.
        """
        self.folder, self.old = folder, read_manifest(folder)
        sizes = [self.old.image.default_size]
        for precision, variant in self.old.variants.items():
            sizes += map(int, variant.vision_encoder)
            *_, stored_as, _ = variant.decoder.split(".")
            if variant.decoder != graph_file(DECODER, stored_as, operators):
                raise PackageError(
                    f"{folder}: the decoder of {precision} is {variant.decoder}, not made of "
                    f"{operators} operators as the addition would be; export to another folder."
                )
        self.precisions = tuple(dict.fromkeys((*self.old.variants, *precisions)))
        self.image_sizes = tuple(dict.fromkeys((*sizes, *image_sizes)))
        if len(self.precisions) == len(self.old.variants) and all(
            len(variant.vision_encoder) == len(self.image_sizes)
            for variant in self.old.variants.values()
        ):
            raise InputError(
                f"{folder}: holds {', '.join(self.precisions)} at "
                f"{', '.join(map(str, self.image_sizes))} pixels, and nothing to add was asked for."
            )

    def check_weights(self, new: Manifest) -> None:
        """Raise PackageError if the new package's weights are not the old one's."""
        for name, entry in self.old.files.items():
            found = new.files.get(name)
            # With other tensors in it, a file has another size.
            if (
                found is not None
                and name.endswith((".data", ".npy"))
                and found.bytes == entry.bytes
                and found.sha256 != entry.sha256
            ):
                raise PackageError(
                    f"{self.folder}: {name} would change, so it was made of another checkpoint "
                    f"({self.old.source.name}) or by another version ({self.old.source.exporter}); "
                    "replace the package with --overwrite, or export to another folder."
                )

    def still_measured(self, new: Manifest) -> dict[str, VariantAgreement]:
        """What was measured of variants whose files are all as they were."""
        return {
            precision: measured
            for precision, measured in self.old.measured.items()
            if all(
                self.old.files[name] == new.files.get(name)
                for size in self.old.variants[precision].vision_encoder
                for name in self.old.files_of(precision, int(size))
            )
        }
