"""The review page in a real browser, by keys pressed, up to the audit that reads its CSV."""

import csv
import json

import pytest
from playwright.sync_api import expect

from tests.browser import PHONE, visit
from tests.outputs import label, make_image
from tlray.audit.draw import draw
from tlray.cli.commands import main
from tlray.config import AuditConfig

CLASSES = ["glass", "=HYPERLINK(1)", "</script><b>metal</b>"]
HOSTILE = ["<script>alert(1)<!--.png", 'qu"o,te.png', "new\nline.png", "=1+2.png", "\u202ea.png"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """100 rows of three classes, some with hostile names, ten without a picture."""
    folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate([*HOSTILE, *(f"{index:03d}.png" for index in range(95))]):
        (folder / name).write_bytes(make_image((2 * index, 0, 0)))
    labels = label(tmp_path_factory.mktemp("out") / "labels", [folder], lambda row: (row % 10) // 4, CLASSES)
    for index in range(10):
        (folder / f"{index:03d}.png").write_bytes(b"no image")
    return labels


@pytest.fixture
def page_path(labels, tmp_path):
    """The page of a sample of 60 rows."""
    return make_page(labels, tmp_path / "audit", 60)


def make_page(labels, folder, rows):
    drawn = draw(AuditConfig(labels=str(labels), sample=rows, output=str(folder)))
    return folder / drawn.page.rpartition("/")[2]


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def read_answers(page):
    return page.evaluate("Object.fromEntries(answered())")


def save(page, path):
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "sample.csv"
    download.value.save_as(path)
    return read_csv(path)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_answers_given_by_keys_survive_a_reload_and_are_measured(browser, labels, page_path, tmp_path):
    with visit(browser, page_path) as (page, said):
        press(page, ". . 1 2 3 ? . ArrowRight 2 / . . . . . . . . . . .")
        assert page.locator("#count").inner_text().startswith("20 of 60 reviewed")
        given = read_answers(page)
        page.reload()
        assert read_answers(page) == given
        assert page.locator("#bar").get_attribute("value") == "20"
        assert page.locator("#place").inner_text() == "8 of 60"  # the first row without an answer
        rows = save(page, tmp_path / "filled.csv")
        assert said == []
    typed = [row["correct_label"] for row in rows if row["correct_label"]]
    assert [row["correct_label"] for row in rows[:8]] == [".", ".", ".", "'=HYPERLINK(1)", CLASSES[2], "?", ".", ""]
    assert len(typed) == len(given) == 20
    answers = ["--answers", str(tmp_path / "filled.csv"), "--output", str(page_path.parent)]
    assert main(["audit", str(labels), *answers]) == 0
    told = json.loads((page_path.parent / "audit.json").read_text())
    assert told["reviewed"] == 20
    assert told["right"] == sum(answer == "." for answer in typed)
    assert told["none_of_them"] == 2


def test_the_saved_csv_is_the_form_with_answers(browser, page_path, tmp_path):
    form = read_csv(page_path.parent / "sample.csv")
    with visit(browser, page_path) as (page, _):
        press(page, "?")
        rows = save(page, tmp_path / "filled.csv")
    assert rows[0].pop("correct_label") == "?"
    form[0].pop("correct_label")
    assert rows == form


def test_undo_takes_back_an_answer_at_a_time(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, ". 2 ArrowRight .")
        press(page, "Backspace")
        assert len(read_answers(page)) == 2
        assert page.locator("#place").inner_text() == "4 of 60"
        press(page, "Control+z Control+z")
        assert read_answers(page) == {}
        assert page.locator("#place").inner_text() == "1 of 60"
        press(page, "Backspace")
        assert page.locator("#message").inner_text() == "There is nothing to undo."


def test_a_grid_is_walked_and_marked(browser, page_path):
    with visit(browser, page_path) as (page, said):
        press(page, "Enter")
        columns = page.evaluate("countColumns()")
        assert columns > 3
        press(page, "ArrowDown ArrowRight 3")
        assert page.locator("#place").inner_text() == f"{columns + 3} of 60"
        assert page.locator(".card").count() == 48
        assert page.locator(".card").nth(columns + 1).locator(".said").inner_text().endswith(CLASSES[2])
        page.locator(".card").nth(2).click()
        assert page.locator("#place").inner_text() == "3 of 60"
        page.click("#rest")
        unseen = page.evaluate("listPage().filter((number) => findPicture(number) === null)")
        assert len(read_answers(page)) == 48 - len(unseen)
        assert not {page.evaluate(f"rows[{number}].id") for number in unseen} & {int(row) for row in read_answers(page)}
        assert f"{len(unseen)} row" in page.locator("#message").inner_text()
        press(page, "Backspace")
        assert len(read_answers(page)) == 1
        press(page, "PageDown")
        assert page.locator(".card").count() == 12
        press(page, "Enter")
        assert page.locator("#picture").is_visible()
        assert said == []


def test_rows_are_filtered_and_ordered(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, ". . 2 ?")
        for state, rows in (("open", 56), ("done", 4), ("wrong", 2), ("none", 1), ("all", 60)):
            page.select_option("#state", state)
            assert page.evaluate("shown.length") == rows
        page.select_option("#label", "1")
        assert page.locator("#predicted").inner_text() == CLASSES[1]
        page.select_option("#state", "none")
        assert page.locator("#nothing").is_visible()
        press(page, ". ArrowRight Enter Space")  # nothing to answer
        assert len(read_answers(page)) == 4
        page.select_option("#state", "all")
        page.select_option("#order", "doubt")
        sure = page.evaluate("shown.map((number) => rows[number].probability)")
        assert sure == sorted(sure)


def test_a_half_filled_csv_is_read(browser, page_path, tmp_path):
    with visit(browser, page_path) as (page, _):
        press(page, ". . 2 3 ?")
        rows = save(page, tmp_path / "mine.csv")
        given = read_answers(page)
    rows[5]["correct_label"] = "glass "
    rows[6]["correct_label"] = "plastic"
    rows[0]["correct_label"] = "?"
    with (tmp_path / "other.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    with visit(browser, page_path) as (page, said):
        assert read_answers(page) == {}  # another browser
        press(page, ".")
        page.set_input_files("#csv", tmp_path / "other.csv")
        expect(page.locator("#message")).to_contain_text("6 answers")
        expected = {**given, rows[0]["row_id"]: -1, rows[5]["row_id"]: 0}
        assert read_answers(page) == expected
        told = page.locator("#message").inner_text()
        assert "1 replaced others; 1 line skipped: no row of this sample, or no class" in told
        press(page, "Backspace")
        assert len(read_answers(page)) == 1
        (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
        page.set_input_files("#csv", tmp_path / "wrong.csv")
        expect(page.locator("#message")).to_contain_text("has no column")
        assert said == []


def test_a_dropped_csv_is_read(browser, page_path):
    with visit(browser, page_path) as (page, _):
        row = page.evaluate("rows[9].id")
        page.evaluate(
            """text => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([text], "half.csv"));
              document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
            }""",
            f"row_id,correct_label\r\n{row},.\r\n",
        )
        expect(page.locator("#count")).to_contain_text("1 of 60")
        assert list(read_answers(page)) == [str(row)]


def test_a_picture_is_enlarged_and_answered(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, "Space")
        assert page.locator("#zoom").is_visible()
        first = page.locator("#zoom img").get_attribute("src")
        assert page.locator("#zoomed").inner_text() == "glass?"
        press(page, "1")
        assert page.locator("#zoom img").get_attribute("src") != first
        press(page, "ArrowLeft")
        assert page.locator("#zoomed").inner_text() == "glass? right"
        press(page, "ArrowRight")
        assert len(read_answers(page)) == 1
        press(page, "Escape")
        assert not page.locator("#zoom").is_visible()


def test_a_row_without_a_picture_says_so(browser, page_path):
    with visit(browser, page_path) as (page, _):
        empty = page.evaluate("shown.filter((number) => findPicture(number) === null)")
        assert 1 <= len(empty) <= 10
        page.evaluate(f"at = {empty[0]}; draw()")
        assert page.locator("#picture img").is_hidden()
        said = page.evaluate("getComputedStyle(document.getElementById('picture'), '::after').content")
        assert "no picture" in said


def test_a_browser_that_keeps_nothing_is_told(browser, page_path):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('off'); } })")
    page.goto(page_path.as_uri())
    press(page, ". .")
    assert page.locator("#kept").is_visible()
    assert len(read_answers(page)) == 2
    context.close()


def test_with_many_classes_names_are_typed(browser, tmp_path):
    names = [f"class {index:02d}" for index in range(60)]
    images = tmp_path / "images"
    images.mkdir()
    for index in range(20):
        (images / f"{index}.png").write_bytes(make_image((index, 0, 0)))
    output = label(tmp_path / "labels", [images], lambda row: 40 + row, names)
    with visit(browser, make_page(output, tmp_path / "audit", 20)) as (page, _):
        assert page.locator("#classes button").count() == 36
        assert page.locator("#classes button").last.inner_text().endswith("class 59")
        press(page, ",")
        page.keyboard.type("class 3")  # the start of other names, and of none
        press(page, "Enter")
        assert page.locator("#message").inner_text() == "No class has this name."
        page.keyboard.type("3")
        assert read_answers(page) == {}
        press(page, "Enter")
        assert list(read_answers(page).values()) == [33]
        press(page, "z")
        assert list(read_answers(page).values()) == [33, 59]
        press(page, ", Escape z")
        assert list(read_answers(page).values()) == [33, 59, 59]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("keys", ["", "Enter"])
def test_the_page_fits_a_phone(browser, page_path, scheme, keys):
    with visit(browser, page_path, PHONE, color_scheme=scheme, has_touch=True) as (page, said):
        press(page, keys)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        for name in ("#right", "#none", "#undo", "#save"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE[0]
            assert box["y"] + box["height"] <= PHONE[1]
            assert box["height"] >= 36
        page.tap("#right")
        assert len(read_answers(page)) == 1
        assert said == []


def test_pictures_out_of_sight_are_not_decoded(browser, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(200):
        (images / f"{index}.png").write_bytes(make_image((index, 0, 0)))
    output = label(tmp_path / "labels", [images], lambda row: row % 3, CLASSES)
    with visit(browser, make_page(output, tmp_path / "audit", 200)) as (page, _):
        assert page.locator("#picture img").is_visible()
        assert page.evaluate("[blocks.length, parsed.size]") == [5, 1]


def test_samples_of_one_run_keep_their_answers_apart_and_tabs_of_one_share_them(browser, labels, tmp_path):
    large, small = make_page(labels, tmp_path / "large", 60), make_page(labels, tmp_path / "small", 30)
    with visit(browser, large) as (page, _):
        press(page, ". . .")
        other = page.context.new_page()
        other.goto(small.as_uri())
        press(other, "2")
        assert len(read_answers(other)) == 1
        twin = page.context.new_page()
        twin.goto(large.as_uri())
        assert len(read_answers(twin)) == 3
        press(twin, "Home 3")
        expect(page.locator("#count")).to_contain_text("1 wrong")
        press(page, "Backspace Backspace Backspace")  # what another tab answered since stays
        assert list(read_answers(page).values()) == [2]


def test_a_held_key_answers_once(browser, page_path):
    with visit(browser, page_path) as (page, _):
        page.keyboard.down(".")
        for _ in range(5):
            page.keyboard.down(".")  # as a key that is held
        page.keyboard.up(".")
        assert len(read_answers(page)) == 1


def test_the_end_of_a_view_is_not_answered_twice(browser, page_path):
    with visit(browser, page_path) as (page, _):
        page.select_option("#label", "2")
        count = page.evaluate("shown.length")
        press(page, "End .")
        assert page.locator("#place").inner_text().startswith("1 of")  # the first without an answer
        press(page, " ".join("." * (count - 1)))
        assert "This view ends here; " in page.locator("#message").inner_text()
        given = read_answers(page)
        press(page, "1")
        assert read_answers(page) == given
        press(page, "Backspace")
        assert len(read_answers(page)) == count - 1


def test_undo_shows_the_row_that_it_changes(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, "2")
        page.select_option("#state", "none")
        page.click("#undo")
        assert read_answers(page) == {}
        assert page.locator("#place").inner_text() == "1 of 60"
        assert page.locator("#message").inner_text() == f"Undone: row {page.evaluate('rows[0].id')}."


def test_a_focused_card_is_the_one_that_is_answered(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, "Enter")
        page.locator(".card").nth(5).focus()
        press(page, "?")
        assert read_answers(page) == {str(page.evaluate("rows[5].id")): -1}
        assert page.evaluate("document.activeElement.classList.contains('current')")


def test_keys_of_other_layouts_answer(browser, page_path):
    with visit(browser, page_path) as (page, _):
        for key, code in (("&", "Digit1"), ("\u044e", "Period"), ("2", "Numpad2")):
            page.evaluate(
                "init => document.body.dispatchEvent(new KeyboardEvent('keydown', {...init, bubbles: true}))",
                {"key": key, "code": code},
            )
        assert list(read_answers(page).values()) == [0, 0, 1]


def test_classes_named_by_a_digit_have_its_key(browser, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(12):
        (images / f"{index}.png").write_bytes(make_image((index, 0, 0)))
    output = label(tmp_path / "labels", [images], lambda row: row % 4, ["0", "1", "2", "none of these"])
    with visit(browser, make_page(output, tmp_path / "audit", 12)) as (page, _):
        texts = page.locator("#classes button").all_inner_texts()
        assert [text.replace("\n", "") for text in texts] == ["00", "11", "22", "3none of these"]
        press(page, "0 1 2 3")
        assert page.evaluate("shown.slice(0, 4).map((number) => answers.get(number))") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("row_id,correct_label\n0x1,.\n,.\n1e1,.\n", "3 lines skipped"),
        ('row_id,correct_label\n1,".\n', "its quotation marks do not close"),
        ("row_id,label\n", "it has no column correct_label"),
        ("row_id;correct_label\r{row};.\r", "1 answer."),
        ("row_id\tcorrect_label\n{row}.0\t =HYPERLINK(1) \n", "1 answer."),
    ],
)
def test_files_are_read_as_the_audit_reads_them(browser, page_path, tmp_path, text, told):
    with visit(browser, page_path) as (page, _):
        first = page.evaluate("rows[0].id")
        (tmp_path / "some.csv").write_text(text.replace("{row}", str(first)))
        page.set_input_files("#csv", tmp_path / "some.csv")
        expect(page.locator("#message")).to_contain_text(told)
        assert set(read_answers(page)) == ({str(first)} if "1 answer" in told else set())


def test_what_to_do_next_is_said_after_saving(browser, page_path, tmp_path):
    with visit(browser, page_path) as (page, _):
        assert page.locator("#next").is_hidden()
        press(page, ".")
        save(page, tmp_path / "some.csv")
        assert "tlray audit" in page.locator("#next").inner_text()


@pytest.mark.parametrize("width", [390, 800, 1000, 1280])
def test_the_question_is_below_the_header(browser, page_path, width):
    with visit(browser, page_path, (width, 800)) as (page, _):
        press(page, "Enter End")
        page.wait_for_timeout(100)
        header, question = page.locator(".top").bounding_box(), page.locator("#predicted").bounding_box()
        assert question["y"] >= header["y"] + header["height"] or header["y"] + header["height"] < 0
        card, panel = page.locator(".card.current").bounding_box(), page.locator("#panel").bounding_box()
        if width == 390:
            assert card["y"] + card["height"] <= panel["y"] + 1
