#!/bin/sh
# Install the Debian packages of Latin faces that `hf_vlm.data.lines.ocr_lines` draws with: text, display, typewriter, receipt and
# handwriting faces, all free. Needs root and apt-get; a package that this release lacks is skipped with a note.
# What a face can write is checked when it is used (`hf_vlm.data.lines.font_faces`), so a package too many does no harm.
#
#   sh scripts/install_fonts.sh           install
#   sh scripts/install_fonts.sh --hands   the same, and joined handwriting out of texlive-fonts-extra (500 MB to download,
#                                         2 MB kept, in /usr/local/share/fonts/texlive-hands)
#   sh scripts/install_fonts.sh --list    print the packages
set -eu

book='fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-romande fonts-adf-tribun fonts-cmu
fonts-crosextra-caladea fonts-ebgaramond fonts-essays1743 fonts-fanwood fonts-freefont-ttf
fonts-gfs-artemisia fonts-gfs-bodoni-classic fonts-gfs-didot fonts-gfs-olga fonts-goudybookletter fonts-junicode
fonts-jsmath fonts-liberation fonts-lindenhill fonts-linuxlibertine fonts-lmodern fonts-oldstandard fonts-prociono
fonts-quattrocento fonts-sil-charis fonts-sil-gentiumplus fonts-stix fonts-texgyre fonts-urw-base35 fonts-vollkorn'

sans='fonts-adf-gillius fonts-adf-switzera fonts-adf-universalis fonts-adf-verana fonts-cabin fonts-cantarell
fonts-crosextra-carlito fonts-dejavu-core fonts-dosis fonts-lato fonts-noto-core fonts-open-sans
fonts-oxygen fonts-play fonts-ubuntu fonts-yanone-kaffeesatz'

display='fonts-adf-oldania fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-comfortaa fonts-eurofurence fonts-jura
fonts-okolaks fonts-quicksand fonts-tuffy'

typewriter_and_receipt='fonts-anonymous-pro fonts-atarismall fonts-courier-prime fonts-gnutypewriter fonts-hack
fonts-inconsolata fonts-mononoki fonts-noto-mono fonts-ocr-a fonts-ocr-b fonts-pc fonts-spleen fonts-sixtyfour
fonts-terminus-otb fonts-vt323 fonts-3270'

handwriting='fonts-bajaderka fonts-breip fonts-comic-neue fonts-dancingscript fonts-dkg-handwriting fonts-dustin
fonts-ecolier-court fonts-havana fonts-isabella fonts-joscelyn fonts-kaushanscript fonts-kiloji fonts-klee fonts-kristi
fonts-leckerli-one fonts-levien-typoscript fonts-lobstertwo fonts-radisnoir fonts-rufscript fonts-seto fonts-sjfonts
fonts-smc-chilanka fonts-summersby fonts-yozvox-yozfont-edu fonts-yusei-magic'

packages="$book $sans $display $typewriter_and_receipt $handwriting"
if [ "${1:-}" = --list ]; then
    printf '%s\n' $packages
    exit
fi

apt-get update -qq || true
known=
for package in $packages; do
    if apt-cache policy "$package" | grep -q 'Candidate: [^(]'; then
        known="$known $package"
    else
        echo "install_fonts.sh: no package $package here, skipped" >&2
    fi
done
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends fontconfig $known

if [ "${1:-}" = --hands ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work" # apt downloads as its own user
    (cd "$work" && apt-get download -qq texlive-fonts-extra)
    mkdir -p /usr/local/share/fonts/texlive-hands
    dpkg-deb --fsys-tarfile "$work"/texlive-fonts-extra_*.deb | tar -x -C "$work" --wildcards \
        '*/AuriocusKalligraphicus.pfb' '*/JanaSkrivana.pfb' '*/LukasSvatba.pfb' '*/callig15.pfb' '*/frc*10.pfb' \
        '*/miama.otf'
    find "$work" -name '*.pfb' -exec cp {} /usr/local/share/fonts/texlive-hands \;
    find "$work" -name '*.otf' -exec cp {} /usr/local/share/fonts/texlive-hands \;
fi
