"""Every row of the table of medical images in docs/reading-images.md, written, listed and read."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tests.base.test_image_arrays import rows

from sidepipe.base import image_files
from sidepipe.base.image_reading import read_images
from sidepipe.stages.data.sources import ImageFolder

HU = np.linspace(-1000, 1000, 64).reshape(8, 8).round()  # of air to bone
RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def read(folder, channels=1):
    entries = ImageFolder(str(folder)).entries()
    (folder.parent / "read").mkdir(exist_ok=True)
    path = folder.parent / "read" / "images.npy"
    images, *_ = read_images(entries, path, 8, channels, None, "error")
    return np.array(images)[..., 0] if channels == 1 else np.array(images), [e.id for e in entries]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


def dicom(path, pixels, **elements):
    """A DICOM file of stored values, as a scanner writes it."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    if pixels is not None:
        bits = 8 * pixels.dtype.itemsize
        data.BitsAllocated = data.BitsStored = bits
        data.HighBit = bits - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns = 8, 8
        for name, value in elements.items():
            setattr(data, name, value)
        data.PixelData = pixels.tobytes()
    data.save_as(path)
    assert pydicom.dcmread(path) is not None


def stored(hu):
    """Values as stored, for RescaleSlope 2 and RescaleIntercept -1024."""
    return ((hu + 1024) / 2).astype(np.int16)


RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -1024}
ROUNDED = 2 * stored(HU).astype(float) - 1024


def linear(values, low, high):
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1))


def with_a_window(folder):
    """The oracle is pydicom's own window, of which the ends are black and white."""
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut, apply_windowing

    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        window = {"WindowCenter": [40, 300], "WindowWidth": [400, 1500]}
        path = folder / "a.dcm"
        dicom(path, stored(HU), **RESCALED, **window, VOILUTFunction=function)
        data = dcmread(path)
        expected = apply_windowing(apply_modality_lut(data.pixel_array, data), data)
        ends = (2 * -(2**15) - 1024, 2 * (2**15 - 1) - 1024)
        found, _ = read(folder)
        np.testing.assert_allclose(found[0], linear(expected, *ends), atol=1)
        assert found.max() > 250
        assert found.min() < 5


def without_a_window(folder):
    dicom(folder / "a.dcm", stored(HU), **RESCALED)
    found, names = read(folder)
    np.testing.assert_array_equal(found[0], linear(ROUNDED, ROUNDED.min(), ROUNDED.max()))
    assert names == ["a.dcm"]
    dicom(folder / "a.dcm", stored(HU), **RESCALED, WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(read(folder)[0], found)


def monochrome1(folder):
    dicom(folder / "a.dcm", stored(HU), PhotometricInterpretation="MONOCHROME1")
    found, _ = read(folder)
    np.testing.assert_allclose(found[0], 255 - linear(ROUNDED, -1000, 1000), atol=1)


def rgb(folder):
    color = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    dicom(folder / "a.dcm", RGB, **color)
    found, _ = read(folder, channels=3)
    np.testing.assert_array_equal(found[0], RGB)


def several_frames(folder):
    frames = np.stack([stored(HU), stored(-HU), stored(HU / 2)])
    dicom(folder / "a.dcm", frames, NumberOfFrames=3, WindowCenter=512, WindowWidth=1025)
    found, names = read(folder)
    assert names == ["a.dcm[0]", "a.dcm[1]", "a.dcm[2]"]
    np.testing.assert_allclose(found, linear(frames, -0.5, 1023.5), atol=1)


def without_suffix(folder):
    dicom(folder / "IM0001", stored(HU))
    assert read(folder)[1] == ["IM0001"]


def without_pixels(folder):
    dicom(folder / "a.dcm", None)
    with pytest.raises(ValueError, match=r"a\.dcm cannot be read: .*it has no pixels"):
        read(folder)


def volume(path, values, affine=None, ends=None):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    if ends:
        image.header["cal_min"], image.header["cal_max"] = ends
    nibabel.save(image, path)


# Values tell where a voxel is: x right, y front, z head.
X, Y, Z = np.meshgrid(np.arange(8), np.arange(8), np.arange(3), indexing="ij")
PLACE = (X + 10 * Y + 100 * Z).astype(np.int16)  # 0 to 277


def axial(folder):
    volume(folder / "a.nii.gz", PLACE)
    # The same patient, stored with the axes in another order and x from the right to the left.
    flipped = np.ascontiguousarray(PLACE.transpose(2, 0, 1)[:, ::-1])
    affine = np.array([[0, -1, 0, 7], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    volume(folder / "b.nii", flipped, affine)
    found, names = read(folder)
    assert names == [f"{name}[{k}]" for name in ("a.nii.gz", "b.nii") for k in range(3)]
    np.testing.assert_array_equal(found[:3], found[3:])
    np.testing.assert_array_equal(found[:3, 0, 0], linear(PLACE[0, 7], 0, 277))
    np.testing.assert_array_equal(found[:3, 7, 7], linear(PLACE[7, 0], 0, 277))


def with_a_range(folder):
    volume(folder / "a.nii", PLACE, ends=(100, 200))
    found, _ = read(folder)
    np.testing.assert_array_equal(found[:, 0, 0], linear(PLACE[0, 7], 100, 200))


def without_a_range(folder):
    volume(folder / "a.nii", PLACE.astype(np.float32) / 7)
    found, _ = read(folder)
    np.testing.assert_array_equal(found[:, 0, 0], linear(PLACE[0, 7], 0, 277))


def several_volumes(folder):
    volume(folder / "a.nii", np.stack([PLACE, PLACE], axis=3))
    with pytest.raises(ValueError, match=r"a\.nii cannot be read: .*one volume \(x, y, z\)"):
        read(folder)


def not_finite(folder):
    volume(folder / "a.nii", np.where(PLACE > 100, np.nan, PLACE).astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.nii\[0\] cannot be read: .*nan or infinity"):
        read(folder)


TRIED = {
    "DICOM with a window": with_a_window,
    "DICOM without a window": without_a_window,
    "DICOM, MONOCHROME1": monochrome1,
    "DICOM, RGB": rgb,
    "DICOM, several frames": several_frames,
    "DICOM without suffix": without_suffix,
    "DICOM without pixels": without_pixels,
    "NIfTI volume": axial,
    "NIfTI with cal_min and cal_max": with_a_range,
    "NIfTI without them": without_a_range,
    "NIfTI, several volumes": several_volumes,
    "NIfTI, nan or infinity": not_finite,
}


def test_the_table_has_a_row_for_each_kind_that_is_tried_and_no_other():
    assert [kind for kind, _ in rows("Medical images")] == list(TRIED)


@pytest.mark.parametrize("kind", TRIED)
def test_each_row_of_the_table_is_true(folder, kind):
    pytest.importorskip("nibabel" if kind.startswith("NIfTI") else "pydicom")
    TRIED[kind](folder)


@pytest.mark.parametrize("name", ["a.dcm", "IM0001", "a.nii", "a.nii.gz"])
def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch, name):
    for cached in (image_files.readable_formats, image_files.readable_suffixes):
        cached.cache_clear()
    find = importlib.util.find_spec
    missing = ("pydicom", "nibabel")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module in missing else find(module)
    )
    Path(tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" if "nii" not in name else b"x")
    try:
        with pytest.raises(ValueError, match=r"needs pip install 'sidepipe\[medical\]'"):
            ImageFolder(str(tmp_path)).entries()
    finally:
        for cached in (image_files.readable_formats, image_files.readable_suffixes):
            cached.cache_clear()
