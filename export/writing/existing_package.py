"""Add variants and image sizes to a package that exists already.

Every graph is exported again, into the folder that then replaces the old folder: files that
variants share hold other tensors once the package has more variants.
"""

from collections.abc import Sequence
from pathlib import Path

from fastvlm_onnx.agreement import VariantAgreement
from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.package import Manifest, read_manifest
from fastvlm_onnx.variants import VARIANTS


class ExistingPackage:
    """The package as it is, and the variants and image sizes that it will have.

    Attributes:
        manifest: the manifest of the package as it is.
        variants: names of the package's variants, then of the added variants.
        image_sizes: the package's image sizes, then the added image sizes; the first is the
            default.
        split_variants: names of the package's variants that have their decoder in parts too.
    """

    def __init__(
        self,
        folder: Path,
        variants: Sequence[str],
        image_sizes: Sequence[int],
        operators: str,
        target: str | None = None,
        *,
        split_decoder: bool = False,
    ) -> None:
        """Read the package.

        Args:
            folder: the package's folder.
            variants: names of the variants to add.
            image_sizes: image sizes to add, in pixels.
            operators: the set of operators of the added decoders.
            target: the provider whose graphs are added to the variants; None for no provider.
            split_decoder: export decoders in parts too, where that is possible.

        Raises:
            PackageError: the folder is no package, or its decoders have other operators.
            InputError: the package has every variant, image size and graph already; or it has
                graphs with static scales, and the target is None.
        """
        self.folder, self.manifest = folder, read_manifest(folder)
        old = self.manifest.variants
        found = self.manifest.decoder.operators
        if found != operators:
            raise PackageError(
                f"{folder}: its decoders are made of {found} operators, not made of {operators} "
                "operators as the addition would be; export to another folder."
            )
        sizes = [self.manifest.image.default_size]
        for variant in old.values():
            sizes += map(int, variant.vision_encoder)
        self.variants = tuple(dict.fromkeys((*old, *variants)))
        self.image_sizes = tuple(dict.fromkeys((*sizes, *image_sizes)))
        self.split_variants = [name for name in old if old[name].split_decoder]
        adds_parts = split_decoder and any(
            name not in self.split_variants and VARIANTS[name].can_split
            for name in old
            if name in VARIANTS
        )
        ranges = self.manifest.ranges
        if ranges is not None and target is None:
            raise InputError(
                f"{folder}: {', '.join(ranges.graphs)} has static scales, found on the set "
                f"{ranges.set}; add --target openvino with the same set, or replace the package "
                "with --overwrite."
            )
        has_all_sizes = all(
            len(variant.vision_encoder) == len(self.image_sizes) for variant in old.values()
        )
        adds_target = target is not None and ranges is None
        adds_nothing = not adds_parts and not adds_target
        if len(self.variants) == len(old) and has_all_sizes and adds_nothing:
            raise InputError(
                f"{folder}: holds {', '.join(self.variants)} at "
                f"{', '.join(map(str, self.image_sizes))} pixels, and nothing to add was asked for."
            )

    def check_calibration(self, calibratable: Sequence[str], *, is_calibrated: bool) -> None:
        """Check that old and new weights are quantised in the same way.

        Args:
            calibratable: the package's variants whose weights a calibration changes.
            is_calibrated: the addition is exported with a calibration.

        Raises:
            InputError: the package is calibrated and the addition is not, or the other way round.
        """
        found = self.manifest.calibration
        if found is not None and not is_calibrated:
            raise InputError(
                f"{self.folder}: its weights are calibrated on the set {found.set}; add "
                "--calibrate with the same set, or replace the package with --overwrite."
            )
        if found is None and is_calibrated and calibratable:
            raise InputError(
                f"{self.folder}: holds {', '.join(calibratable)} without calibration, and "
                "--calibrate would change the weights; replace the package with --overwrite, "
                "or export to another folder."
            )

    def check_weights(self, new: Manifest) -> None:
        """Check that the new package has the weights of the old package.

        Raises:
            PackageError: a weights file of the same size has another content.
        """
        for name, entry in self.manifest.files.items():
            found = new.files.get(name)
            # A file with other tensors has another size, and is no sign of another checkpoint.
            if (
                found is not None
                and name.endswith((".data", ".npy"))
                and found.bytes == entry.bytes
                and found.sha256 != entry.sha256
            ):
                source = self.manifest.source
                raise PackageError(
                    f"{self.folder}: {name} would change, so it was made of another checkpoint "
                    f"({source.name}) or by another version ({source.exporter}); "
                    "replace the package with --overwrite, or export to another folder."
                )

    def still_measured(self, new: Manifest) -> dict[str, VariantAgreement]:
        """Return the agreement of the variants whose files have not changed, by variant."""
        old = self.manifest
        return {
            name: measured
            for name, measured in old.measured.items()
            if all(
                old.files[file] == new.files.get(file)
                for size in old.variants[name].vision_encoder
                for file in old.files_of(name, int(size))
            )
        }
