"""The built-in sprites: a pure function of the seed, all different, balanced, on white; the classes can be told."""

import numpy as np
import pytest

from fastcond.data.sprites import ARCHETYPES, CLASS_NAMES, draw_sprite, draw_sprites, sprite_archetype

LABELS = range(len(CLASS_NAMES))


@pytest.fixture(scope="module")
def sprites():
    return draw_sprites(3000)


def test_class_names_are_the_published_ones():
    assert CLASS_NAMES == ("hero", "non-hero", "food", "spell", "side-facing hero")


@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_shapes_and_dtypes(count):
    images, labels = draw_sprites(count, seed=3)
    assert images.shape == (count, 16, 16, 3) and images.dtype == np.uint8
    assert labels.shape == (count,) and labels.dtype == np.int64


def test_labels_take_turns(sprites):
    _, labels = sprites
    assert np.array_equal(labels, np.arange(3000) % 5)


def test_a_seed_gives_the_same_images_and_another_seed_others():
    first, again, other = draw_sprites(50, seed=0)[0], draw_sprites(50, seed=0)[0], draw_sprites(50, seed=1)[0]
    assert np.array_equal(first, again)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    assert np.array_equal(draw_sprites(100)[0][:50], draw_sprites(50)[0])


def test_image_i_is_draw_sprite_of_i(sprites):
    images, labels = sprites
    for index in (0, 1, 2, 3, 4, 1234, 2999):
        assert np.array_equal(images[index], draw_sprite(int(labels[index]), index, seed=0))


def test_the_order_of_drawing_does_not_matter():
    forward = [draw_sprite(label, 11) for label in LABELS]
    backward = [draw_sprite(label, 11) for label in reversed(LABELS)]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_thousands_of_distinct_images(sprites):
    images, _ = sprites
    assert len({image.tobytes() for image in images}) > 0.99 * len(images)


def test_the_background_is_plain_white(sprites):
    images, labels = sprites
    white = (images == 255).all(axis=-1)
    corners = white[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    spell = labels == CLASS_NAMES.index("spell")
    assert corners[~spell].all()
    assert corners[spell].mean() > 0.9, "the others hold a halo"
    assert white[~spell].mean(axis=(1, 2)).min() > 0.15 and white.mean(axis=(1, 2)).max() < 0.7


@pytest.mark.parametrize("label", LABELS)
def test_every_archetype_occurs(label):
    names = [sprite_archetype(label, index) for index in range(label, 2000, 5)]
    assert set(names) == set(ARCHETYPES[label])
    assert min(names.count(name) for name in ARCHETYPES[label]) > len(names) / len(ARCHETYPES[label]) / 3


@pytest.mark.parametrize("label", LABELS)
def test_an_archetype_is_drawn_in_many_ways(label):
    first = ARCHETYPES[label][0]
    indices = [index for index in range(400) if sprite_archetype(label, index) == first]
    assert len({draw_sprite(label, index).tobytes() for index in indices}) == len(indices)


@pytest.mark.parametrize("label, index, seed", [(-1, 0, 0), (5, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_values_out_of_range_are_named(label, index, seed):
    with pytest.raises(ValueError, match=rf"got.*{label if label == 5 else -1}\b"):
        draw_sprite(label, index, seed)


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        draw_sprites(-1)


def test_an_independent_classifier_tells_the_classes_apart(sprites):
    svm = pytest.importorskip("sklearn.svm")
    images, labels = sprites
    unseen, truth = draw_sprites(1000, seed=1)
    classifier = svm.SVC(C=10).fit(images[:2000].reshape(2000, -1) / 255, labels[:2000])
    assert (classifier.predict(unseen.reshape(1000, -1) / 255) == truth).mean() > 0.99
